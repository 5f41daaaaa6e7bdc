"""``export lora``: a checkpoint becomes a PEFT adapter of the model that it was made of.

Linear layers become low-rank factors of what they changed by; other modules that changed (norms, tables, layers whose
bias changed) are stored whole, as PEFT's ``modules_to_save``. A tensor that neither form can hold ends the export.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcompose.anatomy import EMBEDDING, HEAD, build_on_meta, config_of
from mcompose.checkpoint import ADAPTER_FILE, MERGEABLE_DTYPES, PEFT_PREFIX, read_float32
from mcompose.compose import open_parts
from mcompose.errors import CheckpointError, CompositionError, RequestError
from mcompose.methods import factorise
from mcompose.refs import ModelRef
from mcompose.whole_files import write_bytes, write_text

if TYPE_CHECKING:
    from torch import nn

    from mcompose.checkpoint import TensorEntry
    from mcompose.merge import SourceParts

__all__ = ["AdapterReport", "ExportedMatrix", "export_adapter"]

PEFT_EMBEDDING = "embed_tokens"
"""Name of the only embedding that PEFT keeps tied to the head."""

WHOLE = ("Linear", "Conv1D", "Embedding")
"""Classes of modules, beside norms, that PEFT can keep whole beside its factors."""


@dataclass(frozen=True)
class ExportedMatrix:
    """One linear layer of an exported adapter.

    Args:
        module: Path of the layer in memory.
        layer: Index of the decoder layer; None outside the layers.
        rank: Rank of its factors.
        error: What the factors miss of its change, as a share of the change (Euclidean norm).
        norm: Norm of its change.
    """

    module: str
    layer: int | None
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class AdapterReport:
    """An exported adapter.

    Args:
        folder: Where it is.
        base: The model that it belongs to.
        matrices: Its factors.
        whole: Paths of modules that are stored whole.
        parameters: Number of numbers in the file.
    """

    folder: Path
    base: str
    matrices: tuple[ExportedMatrix, ...]
    whole: tuple[str, ...]
    parameters: int

    @property
    def error(self) -> float:
        """What all factors together miss of all changes, as a share."""
        return _together(self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        rows = [asdict(one) for one in self.matrices]
        return {
            "output": str(self.folder),
            "base": self.base,
            "parameters": self.parameters,
            "error": self.error,
            "matrices": rows,
            "whole": list(self.whole),
        }

    def to_text(self) -> str:
        """Returns the report as text, with a line for each layer."""
        lines = [f"{self.folder}  {self.parameters:,} parameters, error {self.error:.2%} of the change"]
        for layer in dict.fromkeys(one.layer for one in self.matrices):
            group = [one for one in self.matrices if one.layer == layer]
            label = "outside the layers" if layer is None else f"layer {layer}"
            ranks = sorted({one.rank for one in group})
            shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            lines.append(f"  {label}: {len(group)} matrices, rank {shown}, error {_together(group):.2%}")
        if self.whole:
            lines.append(f"  stored whole: {len(self.whole)} modules ({', '.join(self.whole[:3])}, ...)")
        return "\n".join(lines)


def _together(matrices: Sequence[ExportedMatrix]) -> float:
    missed = math.hypot(*(one.error * one.norm for one in matrices))
    return missed / (math.hypot(*(one.norm for one in matrices)) or 1.0)


@dataclass
class _Draft:
    """What the adapter's file will hold, and how much of a change is kept."""

    tuned: SourceParts
    origin: SourceParts
    rank: int | None
    energy: float | None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    matrices: list[ExportedMatrix] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    transposed: bool = False
    keeps_tied: bool = False


def export_adapter(
    model: ModelRef, *, base: ModelRef, output: Path, rank: int | None = None, energy: float | None = None
) -> AdapterReport:
    """Writes what a model changed of its base as an adapter that PEFT loads.

    Args:
        model: The model: a merge, or a fine-tune.
        base: The checkpoint that the adapter will be loaded on.
        output: Folder to write.
        rank: Largest rank of a layer.
        energy: Share of each change's sum of squares that is kept, with as small a rank as can be.

    Returns:
        The report.

    Raises:
        McomposeError: One of both cannot be read, they do not have the same tensors, nothing differs, or a difference
            cannot be stored in an adapter.
    """
    if rank is None and energy is None:
        raise RequestError("How much to keep is not said.", hint="Give `--rank N`, `--energy SHARE`, or both.")
    if output.exists() and any(output.iterdir()):
        raise RequestError(f"The folder '{output}' is not empty.", hint="Name a new one with `-o`.")
    tuned = open_parts(model, name="model", relative_to=Path(), weights=True)
    origin = open_parts(base, name="base", relative_to=Path(), weights=True)
    pairs = _pairs(tuned, origin)
    paths, modules = _in_memory(origin, pairs)
    draft = _Draft(tuned, origin, rank, energy)
    members: dict[str, list[str]] = {}
    for name in pairs:
        members.setdefault(paths[name].rpartition(".")[0], []).append(name)
    for path, names in members.items():
        _add_module(draft, path, modules[path], {name: pairs[name] for name in names})
    if not draft.tensors:
        raise CompositionError("Model and base have the same values: there is nothing to export.")
    _write(draft, output, base=base)
    size = sum(tensor.size for tensor in draft.tensors.values())
    return AdapterReport(output, str(base), tuple(draft.matrices), tuple(draft.whole), size)


def _pairs(tuned: SourceParts, origin: SourceParts) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """Returns the tensors of both by the name that they share, in the base's order."""
    if tuned.anatomy.tied != origin.anatomy.tied:
        raise CompositionError(
            "One of model and base has a head of its own, and the other uses the embedding as its head.",
            hint="An adapter cannot change that; save the base with a head of its own first.",
        )
    ours, theirs = (
        {name: slot for name, slot in one.anatomy.by_name().items() if not (one.anatomy.tied and slot.part == HEAD)}
        for one in (tuned, origin)
    )
    for first, second, owner, other in ((ours, theirs, "model", "base"), (theirs, ours, "base", "model")):
        alone = next((name for name in first if name not in second), None)
        if alone is not None:
            raise CompositionError(
                f"The {owner} has '{first[alone].key}', which the {other} does not have.",
                hint="An adapter changes tensors of its base; name the base that has all parts of the model.",
            )
    pairs = {name: (tuned.entry(ours[name].key), origin.entry(slot.key)) for name, slot in theirs.items()}
    for entry, start in pairs.values():
        if entry.shape != start.shape:
            raise CompositionError(
                f"'{start.key}' has shape {entry.shape} in the model and {start.shape} in the base.",
                hint="Resize the base's tables first (transformers' `resize_token_embeddings`).",
            )
        if entry.dtype not in MERGEABLE_DTYPES or start.dtype not in MERGEABLE_DTYPES:
            raise CheckpointError(
                f"'{start.key}' is {entry.dtype} in the model and {start.dtype} in the base: not to be subtracted."
            )
    return pairs


def _in_memory(origin: SourceParts, names: Iterable[str]) -> tuple[dict[str, str], Mapping[str, nn.Module]]:
    """Returns name to the path of its parameter in memory, and the modules of the base's class."""
    network = build_on_meta(config_of(origin.checkpoint.config))
    present = dict.fromkeys(network.state_dict())
    slots, paths = origin.anatomy.by_name(), {}
    for name in names:
        key = slots[name].key
        path = next((p for p in (key, f"{network.base_model_prefix}.{key}") if p in present), None)
        if path is None:
            raise CompositionError(
                f"'{key}' of the base has another name in {type(network).__name__}, and an adapter uses the class's.",
                hint="An adapter is exported for bases whose files use the names of their class: language models.",
            )
        paths[name] = path
    return paths, dict(network.named_modules())


def _add_module(
    draft: _Draft, path: str, module: nn.Module, pairs: Mapping[str, tuple[TensorEntry, TensorEntry]]
) -> None:
    """Adds one module: as factors where only its matrix changed, whole where more did, not at all where nothing did."""
    changed = {}
    for name, (entry, start) in pairs.items():
        delta = read_float32(entry) - read_float32(start)
        if delta.any():
            changed[name] = delta
    if not changed:
        return
    kind = type(module).__name__
    if kind in ("Linear", "Conv1D") and len(changed) == 1 and (delta := next(iter(changed.values()))).ndim == 2:
        draft.transposed |= kind == "Conv1D"
        factors = factorise(delta.T if kind == "Conv1D" else delta, rank=draft.rank, energy=draft.energy)
        draft.tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = factors.a
        draft.tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = factors.b
        layer = draft.origin.anatomy.by_name()[next(iter(changed))].layer
        draft.matrices.append(ExportedMatrix(path, layer, factors.rank, factors.error / factors.norm, factors.norm))
        return
    if next(module.children(), None) is not None or (kind not in WHOLE and not kind.endswith("Norm")):
        raise CompositionError(
            f"'{pairs[next(iter(changed))][1].key}' differs, and an adapter cannot hold a change of {kind}.",
            hint="Keep these tensors at the base's values (`merge.overrides`), or use the whole checkpoint.",
        )
    if draft.origin.anatomy.tied and draft.origin.anatomy.by_name()[next(iter(changed))].part == EMBEDDING:
        if path.rpartition(".")[2] != PEFT_EMBEDDING:
            raise CompositionError(
                f"'{path}' differs and is the head too, and PEFT would change it as the embedding alone.",
                hint="Keep the embedding at the base's values (`merge.overrides`), or use the whole checkpoint.",
            )
        draft.keeps_tied = True
        (table,) = (entry for entry, _ in pairs.values())
        draft.tensors[f"{PEFT_PREFIX}{draft.origin.anatomy.head_key}"] = read_float32(table)  # PEFT asks for both
    for entry, _ in pairs.values():
        draft.tensors[f"{PEFT_PREFIX}{path}.{entry.key.rpartition('.')[2]}"] = read_float32(entry)
    draft.whole.append(path)


def _write(draft: _Draft, output: Path, *, base: ModelRef) -> None:
    """Writes the two files; the config, which makes the folder an adapter, comes last."""
    from safetensors.numpy import save  # noqa: PLC0415 - the only use in this room

    ranks = {one.module: one.rank for one in draft.matrices}
    top = max(ranks.values(), default=1)
    others = {re.escape(path): rank for path, rank in ranks.items() if rank != top}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base).removeprefix("local:").removeprefix("hub:").partition("@")[0],
        "r": top,
        "lora_alpha": top,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": draft.transposed,
        "target_modules": list(ranks),
        "modules_to_save": draft.whole or None,
        "rank_pattern": others,
        "alpha_pattern": others,
        "ensure_weight_tying": draft.keeps_tied,
    }
    output.mkdir(parents=True, exist_ok=True)
    tensors = {key: np.ascontiguousarray(value) for key, value in draft.tensors.items()}
    write_bytes(output / ADAPTER_FILE, save(tensors, metadata={"format": "pt"}))
    write_text(output / "adapter_config.json", json.dumps(config, indent=1) + "\n")
