"""The proof that a stage left alone what it does not train: a digest of every frozen part, before and after.

Parameters and saved buffers count: the running mean of a frozen encoder is part of what it does. Frozen modules are
kept in evaluation mode while the rest is trained, so that neither dropout nor a running mean moves in them.
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

__all__ = ["FrozenModules", "check_unchanged", "frozen_digests", "keep_evaluating"]


def frozen_digests(model: nn.Module, labels: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Digests of everything that is not trained.

    Args:
        model: With ``requires_grad`` set.
        labels: Name in memory to the label of its part, where the anatomy has it.

    Returns:
        Part to ``tensors`` (how many) and ``digest``.
    """
    digests: dict[str, TensorDigest] = {}
    counts: dict[str, int] = {}
    for name, tensor in _frozen(model):
        # What the files do not hold is a group that this stage adds, or something that the model computes.
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
    """Compares two digests.

    Raises:
        NumericsError: A frozen part is not what it was.
    """
    moved = [part for part in before if after.get(part) != before[part]]
    if moved or before.keys() != after.keys():
        raise NumericsError(f"The frozen part '{(moved or ['?'])[0]}' changed while the stage was trained.")


class FrozenModules:
    """The modules that are wholly frozen, to be kept in evaluation mode.

    Args:
        model: With ``requires_grad`` set.
        checkpointing: Whether activations are recomputed: a frozen layer that gradients pass through recomputes in
            training mode only, so such layers (not what is inside them) stay in it.
    """

    def __init__(self, model: nn.Module, *, checkpointing: bool) -> None:
        self._modules = [
            module
            for module in model.modules()
            if not any(parameter.requires_grad for parameter in module.parameters())
            and not (checkpointing and isinstance(module, GradientCheckpointingLayer))
        ]

    def evaluate(self) -> None:
        """Puts them in evaluation mode; cheap enough for every step."""
        for module in self._modules:
            module.training = False


def keep_evaluating(model: nn.Module, *, checkpointing: bool) -> FrozenModules:
    """See ``FrozenModules``."""
    return FrozenModules(model, checkpointing=checkpointing)
