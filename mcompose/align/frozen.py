"""Checks that a stage did not change frozen parts, by a digest of every frozen part before and after.

Parameters and saved buffers count, since the running mean of a frozen encoder affects its output. Frozen modules stay
in evaluation mode while the rest is trained, so that they have no dropout and their running means do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mcompose.align.tensor_file import raw_bytes
from mcompose.anatomy import group_part
from mcompose.checkpoint import TensorDigest
from mcompose.errors import NumericsError

__all__ = ["FrozenModules", "check_unchanged", "frozen_digests"]


def frozen_digests(model: nn.Module, labels: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Digests every frozen part.

    Args:
        model: Model with ``requires_grad`` set.
        labels: Name in memory to the label of its part, for tensors that the anatomy has.

    Returns:
        Part to ``tensors`` (their number) and ``digest``.
    """
    digests: dict[str, TensorDigest] = {}
    counts: dict[str, int] = {}
    for name, tensor in _frozen(model):
        # A tensor that is not in the files belongs to a group that this stage adds, or is computed by the model.
        part = labels.get(name.replace(".base_layer.", ".")) or group_part(name) or "other"
        digest = digests.setdefault(part, TensorDigest())
        digest.update(name.encode())
        digest.update(raw_bytes(tensor))
        counts[part] = counts.get(part, 0) + 1
    return {part: {"tensors": counts[part], "digest": digest.text()} for part, digest in digests.items()}


def _frozen(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in trained and not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            yield name, tensor


def check_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Compares digests from before and after training.

    Raises:
        NumericsError: A frozen part changed.
    """
    changed = [part for part in before if after.get(part) != before[part]]
    if changed or before.keys() != after.keys():
        raise NumericsError(f"The frozen part '{(changed or ['?'])[0]}' changed while the stage was trained.")


class FrozenModules:
    """Modules without trained parameters, to be kept in evaluation mode.

    Args:
        model: Model with ``requires_grad`` set.
        checkpointing: Whether activations are recomputed. A frozen layer that gradients pass through recomputes in
            training mode only, so such layers (not the modules inside them) stay in training mode.
    """

    def __init__(self, model: nn.Module, *, checkpointing: bool) -> None:
        self._modules = [
            module
            for module in model.modules()
            if not any(parameter.requires_grad for parameter in module.parameters())
            and not (checkpointing and isinstance(module, GradientCheckpointingLayer))
        ]

    def evaluate(self) -> None:
        """Sets the modules to evaluation mode; cheap enough for every step."""
        for module in self._modules:
            module.training = False
