"""The result of a stage as files: the new values of what was trained, and an adapter where factors were trained."""

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
    """The parameters that are trained.

    Args:
        direct: Name in memory to the key of the file.
        factors: Name in memory to the name of the adapted part.
        parts: Name in memory to the part, as the recipe names it; of both.
        lora: The adapted parts.
    """

    direct: Mapping[str, str]
    factors: Mapping[str, str]
    parts: Mapping[str, str]
    lora: tuple[LoraPart, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in order."""
        return (*self.direct, *self.factors)


@torch.no_grad()
def full_values(model: nn.Module, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Parameters by name, whole even where each process holds a part. Every process has to call it.

    Args:
        model: Wrapped or not.
        names: In memory, of the unwrapped model.
    """
    parameters = {_plain(name): parameter for name, parameter in model.named_parameters()}
    found = {}
    for name in names:
        value: Any = parameters[name]
        found[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
    return found


def _plain(name: str) -> str:
    for wrapper in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def write_result(
    folder: Path, trained: Trained, values: Mapping[str, torch.Tensor], *, dtypes: Mapping[str, str]
) -> dict[str, Any]:
    """Writes the delta and the adapter.

    Args:
        folder: Folder of the stage.
        trained: What was trained.
        values: Name in memory to final value.
        dtypes: Key to the dtype that its checkpoint has; a master is rounded to it once.

    Returns:
        Entries of the record: ``delta`` (key to digest) and ``adapter`` (digest of its file, or empty).

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
            raise NumericsError(f"'{name}' is not finite after training.", hint="Lower 'lr', or train in float32.")
    digests = write_tensors(folder / DELTA, delta) if delta else {}
    adapter = ""
    if factors:
        write_tensors(folder / ADAPTER_FILE, factors)
        write_text(folder / "adapter_config.json", adapter_config(trained.lora, trained.factors))
        adapter = file_digest(folder / ADAPTER_FILE)
    return {"delta": digests, "adapter": adapter}
