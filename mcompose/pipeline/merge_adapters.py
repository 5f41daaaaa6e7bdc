"""``adapters``: PEFT adapters of one base become one adapter; the base is neither read nor written.

The change of a layer is the weighted sum of the adapters' changes, exactly: their factors side by side, of any ranks,
with zero for an adapter that does not have the layer. A smaller rank is cut from that, by its singular values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mcompose.checkpoint import ADAPTER_FILE, PEFT_PREFIX, open_adapter, read_float32, split_key
from mcompose.errors import CheckpointError, RequestError
from mcompose.methods import robust_merge, shorten
from mcompose.pipeline.export_adapter import AdapterReport, ExportedMatrix
from mcompose.whole_files import write_bytes, write_text

if TYPE_CHECKING:
    from mcompose.checkpoint import Adapter
    from mcompose.refs import ModelRef

__all__ = ["AdapterMerge", "merge_adapters"]

Pair = tuple[np.ndarray, np.ndarray]
"""Factors B and A of one layer."""


@dataclass(frozen=True)
class AdapterMerge:
    """How adapters are merged.

    Args:
        method: ``linear``, the weighted sum of their changes, or ``robustmerge``, which merges the factors themselves.
        weights: One for each adapter; None for 1/M each. ``robustmerge`` takes none.
        rank: Largest rank of a layer; None for all of it.
        energy: Share of a layer's change that is kept; None for all of it.
        allow_different_base: Whether the configs may name different bases.
    """

    method: Literal["linear", "robustmerge"] = "linear"
    weights: tuple[float, ...] | None = None
    rank: int | None = None
    energy: float | None = None
    allow_different_base: bool = False


def merge_adapters(refs: Sequence[ModelRef], *, output: Path, how: AdapterMerge | None = None) -> AdapterReport:
    """Merges adapters of one base into one.

    Args:
        refs: The adapters, in order.
        output: Folder to write.
        how: Method, weights and rank.

    Returns:
        The report; the error is what a smaller rank misses of the exact sum.

    Raises:
        McomposeError: An adapter cannot be read, is of a kind whose change is not a product of two factors, or they do
            not belong together.
    """
    how = how or AdapterMerge()
    if len(refs) < 2:
        raise RequestError("Merging adapters takes two at least.")
    if output.exists() and any(output.iterdir()):
        raise RequestError(f"The folder '{output}' is not empty.", hint="Name a new one with `-o`.")
    weights = how.weights or (1.0 / len(refs),) * len(refs)
    if len(weights) != len(refs):
        raise RequestError(f"{len(refs)} adapters have {len(weights)} weights.", hint="Give one weight for each.")
    adapters = [open_adapter(ref) for ref in refs]
    base = _base_of(adapters, allowed=how.allow_different_base)
    layers = [_layers(adapter) for adapter in adapters]
    if how.method == "robustmerge":
        merged, rows, scale = _robust(adapters, layers, how)
    else:
        merged, rows, scale = *_summed(layers, weights, how), 1.0
    _write(merged, output, base=base, scale=scale, transposed=bool(adapters[0].config.get("fan_in_fan_out")))
    return AdapterReport(output, base, tuple(rows), (), sum(b.size + a.size for b, a in merged.values()))


def _base_of(adapters: Sequence[Adapter], *, allowed: bool) -> str:
    names = [str(adapter.config.get("base_model_name_or_path") or "") for adapter in adapters]
    other = next((index for index, name in enumerate(names) if name and names[0] and name != names[0]), None)
    if other is not None and not allowed:
        raise CheckpointError(
            f"'{adapters[0].ref}' was trained on '{names[0]}', and '{adapters[other].ref}' on '{names[other]}'.",
            hint="If these are the same model, say `--allow-different-base`.",
        )
    transposed = [bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters]
    if any(transposed) and not all(transposed):
        raise CheckpointError("Some of the adapters store their layers transposed (`fan_in_fan_out`), and some do not.")
    return next((name for name in names if name), "")


def _layers(adapter: Adapter) -> dict[str, tuple[Pair, float]]:
    """Returns the factors of every layer and their scale; refuses what is more than two factors."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, entry in adapter.tensors.items():
        module, role = split_key(key)
        if role not in ("A", "B") or len(entry.shape) != 2:
            raise CheckpointError(
                f"'{key}' of the adapter '{adapter.ref}' is not a factor of a linear layer.",
                hint="Fold this adapter into its base as a source's `adapter:`, and export the merge (`export lora`).",
            )
        found.setdefault(module, {})[role] = read_float32(entry)
    for module, roles in found.items():
        if len(roles) != 2 or roles["A"].shape[0] != roles["B"].shape[1]:
            raise CheckpointError(f"The factors of '{module}' in the adapter '{adapter.ref}' do not fit together.")
    return {
        module: ((roles["B"], roles["A"]), adapter.scale_of(module, roles["A"].shape[0]))
        for module, roles in found.items()
    }


def _summed(
    layers: Sequence[Mapping[str, tuple[Pair, float]]], weights: Sequence[float], how: AdapterMerge
) -> tuple[dict[str, Pair], list[ExportedMatrix]]:
    merged: dict[str, Pair] = {}
    rows = []
    for module in dict.fromkeys(name for one in layers for name in one):
        parts = [(one[module], weight) for one, weight in zip(layers, weights, strict=True) if module in one]
        shapes = {(b.shape[0], a.shape[1]) for ((b, a), _), _ in parts}
        if len(shapes) != 1:
            raise CheckpointError(f"'{module}' has different shapes in the adapters; they are not of one base.")
        b = np.concatenate([factor.astype(np.float64) * (scale * weight) for ((factor, _), scale), weight in parts], 1)
        a = np.concatenate([factor for ((_, factor), _), _ in parts])
        norm, error = 0.0, 0.0
        if how.rank is None and how.energy is None and a.shape[0] <= min(b.shape[0], a.shape[1]):
            merged[module] = (b.astype(np.float32), a)
        elif b.any() and a.any():
            factors = shorten(b, a, rank=how.rank, energy=how.energy)
            norm, error = factors.norm, factors.error / factors.norm
            merged[module] = (factors.b, factors.a)
        else:
            merged[module] = (b[:, :1].astype(np.float32) * 0, a[:1] * 0)
        rows.append(ExportedMatrix(module, _layer_of(module), merged[module][1].shape[0], error, norm))
    return merged, rows


def _robust(
    adapters: Sequence[Adapter], layers: Sequence[Mapping[str, tuple[Pair, float]]], how: AdapterMerge
) -> tuple[dict[str, Pair], list[ExportedMatrix], float]:
    if how.weights is not None or how.rank is not None or how.energy is not None:
        raise RequestError("'robustmerge' takes no weights and keeps the rank.", hint="Leave them out.")
    first = layers[0]
    for adapter, one in zip(adapters, layers, strict=True):
        shapes = {module: (b.shape, a.shape, scale) for module, ((b, a), scale) in one.items()}
        if shapes != {module: (b.shape, a.shape, scale) for module, ((b, a), scale) in first.items()}:
            raise CheckpointError(
                f"'robustmerge' adds factor to factor, and '{adapter.ref}' has other layers, ranks or scales than "
                f"'{adapters[0].ref}'.",
                hint="`--method linear` merges adapters that differ.",
            )
    scales = {scale for _, scale in first.values()}
    if len(scales) != 1:
        raise CheckpointError("'robustmerge' takes adapters with one scale for all layers.")
    merged: dict[str, Pair] = {}
    for module in first:
        pairs = [one[module][0] for one in layers]
        a, b = robust_merge([pair[1] for pair in pairs], [pair[0] for pair in pairs])
        merged[module] = (b, a)
    rows = [ExportedMatrix(name, _layer_of(name), a.shape[0], 0.0, 0.0) for name, (_, a) in merged.items()]
    return merged, rows, scales.pop()


def _layer_of(module: str) -> int | None:
    found = re.search(r"\.(\d+)\.", module)
    return int(found[1]) if found else None


def _write(merged: Mapping[str, Pair], output: Path, *, base: str, scale: float, transposed: bool) -> None:
    """Writes the two files; the config, which makes the folder an adapter, comes last."""
    from safetensors.numpy import save  # noqa: PLC0415 - not needed to refuse

    ranks = {module: int(a.shape[0]) for module, (_, a) in merged.items()}
    top = max(ranks.values())
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != top}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": top,
        "lora_alpha": top * scale,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": list(ranks),
        "rank_pattern": others,
        "alpha_pattern": {module: rank * scale for module, rank in others.items()},
    }
    tensors: dict[str, np.ndarray] = {}
    for module, (b, a) in merged.items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / ADAPTER_FILE, save(tensors, metadata={"format": "pt"}))
    write_text(output / "adapter_config.json", json.dumps(config, indent=1) + "\n")
