"""Writes the result of a stage: new values of the trained tensors, and an adapter if factors were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcompose.align.lora import adapter_config, adapter_tensors
from mcompose.align.parts import LoraPart
from mcompose.align.results.lineage import DELTA
from mcompose.align.tensor_file import DTYPES, file_digest, write_tensors
from mcompose.checkpoint import ADAPTER_FILE
from mcompose.errors import NumericsError
from mcompose.whole_files import write_text

__all__ = ["Trained", "full_values", "write_result"]


@dataclass(frozen=True)
class Trained:
    """Trained parameters of a stage, by their names in memory.

    Args:
        direct: Name in memory to key in the files, for tensors that are trained themselves.
        factors: Name in memory to the adapted part, for low-rank factors.
        parts: Name in memory to the part's name in the recipe, for both.
        lora: Adapted parts.
    """

    direct: Mapping[str, str]
    factors: Mapping[str, str]
    parts: Mapping[str, str]
    lora: tuple[LoraPart, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all trained parameters, in order."""
        return (*self.direct, *self.factors)


@torch.no_grad()
def full_values(model: nn.Module, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Gathers parameters by name, also if they are sharded over processes. Every process must call it.

    Args:
        model: Model, wrapped or not.
        names: Names in memory, in the unwrapped model.
    """
    parameters = {_plain(name): parameter for name, parameter in model.named_parameters()}
    values = {}
    for name in names:
        value: Any = parameters[name]
        values[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
    return values


def _plain(name: str) -> str:
    for wrapper in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def write_result(
    folder: Path, trained: Trained, values: Mapping[str, torch.Tensor], *, dtypes: Mapping[str, str]
) -> dict[str, Any]:
    """Writes the delta and the adapter of a stage.

    Args:
        folder: Folder of the stage.
        trained: Trained parameters.
        values: Name in memory to final value.
        dtypes: Key to its dtype in the checkpoint; values are rounded to it once.

    Returns:
        Entries for the record: ``delta`` (key to digest) and ``adapter`` (digest of its file, or empty).

    Raises:
        NumericsError: A value is not finite.
    """
    delta = {}
    for name, key in trained.direct.items():
        dtype = DTYPES.get(dtypes.get(key, ""), values[name].dtype)
        delta[key] = values[name].to("cpu", dtype)
    factors = adapter_tensors({name: values[name] for name in trained.factors})
    for name, value in (*delta.items(), *factors.items()):
        if not torch.isfinite(value).all():
            raise NumericsError(
                f"'{name}' is not finite after training.", hint="Lower 'lr', or set 'precision: float32'."
            )
    digests = write_tensors(folder / DELTA, delta) if delta else {}
    adapter = ""
    if factors:
        write_tensors(folder / ADAPTER_FILE, factors)
        write_text(folder / "adapter_config.json", adapter_config(trained.lora, trained.factors))
        adapter = file_digest(folder / ADAPTER_FILE)
    return {"delta": digests, "adapter": adapter}
