"""Domain experts of an output: new ones out of their checkpoints, and those that a composed source already has.

An expert is its encoder, copied bit for bit (or named by reference), and a projector of its own, new or trained; what
else its checkpoint holds is left out, and listed. A source that is a composition keeps its experts where it keeps its
modality. Paper: Peng et al. 2024, arXiv:2412.05983.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import EXPERT, expert_of
from mcompose.checkpoint import ExpertFile, digest_file, read_json_object, stored_graphs
from mcompose.compose.experts.expert import NewExpert, OutputExpert
from mcompose.compose.experts.projector import opened, projector_jobs, projector_of
from mcompose.compose.towers import TORCH_WORDS
from mcompose.errors import CompositionError
from mcompose.merge import Dropped, TensorJob, copy_job
from mcompose.on_disk import PROCESSORS

if TYPE_CHECKING:
    from mcompose.anatomy import Slot
    from mcompose.checkpoint import Checkpoint
    from mcompose.compose.experts.encoder import FoundEncoder
    from mcompose.compose.towers import OutputTower
    from mcompose.merge import SourceParts
    from mcompose.recipe import Expert, LoadedRecipe

__all__ = ["open_expert", "output_experts"]


def output_experts(
    loaded: LoadedRecipe, towers: Sequence[OutputTower], *, text_width: int, names: Sequence[str], weights: bool
) -> tuple[OutputExpert, ...]:
    """Returns all experts of an output: those of composed sources, then the recipe's.

    Args:
        loaded: The recipe.
        towers: The towers of the output.
        text_width: Width of the language model.
        names: Names that are taken: sources' and towers'.
        weights: Whether weights will be read.

    Raises:
        CompositionError: A clash of names, an expert without items beside it, or one whose parts do not fit.
        CheckpointError: A checkpoint cannot be read.
    """
    served = [modality for tower in towers for modality in tower.modalities]
    found = [expert for tower in towers if tower.inner for expert in _carried(tower, towers)]
    found = list({expert.name: expert for expert in found}.values()) if _same_source(found) else found
    for name, spec in loaded.recipe.compose.experts.items():
        if spec.modality not in served:
            raise CompositionError(
                f"The expert '{name}' stands beside {spec.modality} items, and no source brings {spec.modality}.",
                hint=f"Add a source with {spec.modality}, or write 'modality:' of one that is there.",
            )
        _check_name(name, names, [expert.name for expert in found])
        if spec.onnx is None:
            found.append(open_expert(name, spec, loaded, text_width=text_width, weights=weights))
        else:
            # torch and transformers, as in open_expert
            from mcompose.compose.experts.onnx import open_graph_expert  # noqa: PLC0415

            found.append(open_graph_expert(name, spec, loaded, text_width=text_width, weights=weights))
    return tuple(found)


def _same_source(found: Sequence[OutputExpert]) -> bool:
    """Returns whether carried experts are one: a source with several towers lists its experts for each of them."""
    owners: dict[str, Path] = {}
    for expert in found:
        other = owners.setdefault(expert.name, expert.processor_folder)
        if other != expert.processor_folder:
            raise CompositionError(
                f"Two sources have an expert called '{expert.name}'.",
                hint="Give one of them `modalities:` without what the expert stands beside.",
            )
    return True


def _check_name(name: str, names: Sequence[str], others: Sequence[str]) -> None:
    if name in names or name in others:
        raise CompositionError(
            f"The expert '{name}' has the name of {'a tower' if name in names else 'an expert'} that a source brings.",
            hint="Give it another name in the recipe.",
        )
    if name in TORCH_WORDS:
        raise CompositionError(
            f"An expert cannot be called '{name}': torch uses the word itself.", hint="Give it another name."
        )


def _carried(tower: OutputTower, towers: Sequence[OutputTower]) -> list[OutputExpert]:
    """Experts of a composed source whose modality it brings."""
    source = tower.owner
    brought = [m for other in towers if other.source is source for m in other.modalities]
    summaries = _processor_entries(source)
    experts = []
    for name, entry in (source.checkpoint.config.get("experts") or {}).items():
        if entry["modality"] not in brought:
            continue
        slots = [slot for slot in source.anatomy.slots.values() if expert_of(slot) == name]
        jobs = tuple(_carried_job(source, slot, name) for slot in slots)
        folder = source.checkpoint.folder / PROCESSORS / name
        held = stored_graphs(source.checkpoint.config, expert=name)
        files = tuple(ExpertFile(source.checkpoint.folder / file, file, sha256) for file, sha256 in held.items())
        experts.append(
            OutputExpert(name, entry, summaries.get(name, {}), folder, jobs, files=files, source=source.name)
        )
    return experts


def _processor_entries(source: SourceParts) -> Mapping[str, Any]:
    path = source.checkpoint.folder / "processor_config.json"
    return read_json_object(path).get("experts") or {} if path.is_file() else {}


def _carried_job(source: SourceParts, slot: Slot, name: str) -> TensorJob:
    job = copy_job(slot.key, source.entry(slot.key), slot.part, source=source.name)
    return replace(job, name=f"model.{slot.name}", part=f"{slot.part}:{name}")


def open_expert(name: str, spec: Expert, loaded: LoadedRecipe, *, text_width: int, weights: bool) -> OutputExpert:
    """Opens an expert of the recipe: config and headers, no weights.

    Args:
        name: Name of the expert.
        spec: The expert's entry in the recipe.
        loaded: The recipe.
        text_width: Width of the language model.
        weights: Whether its weights will be read.

    Raises:
        CompositionError: Its checkpoint has no such encoder, or its parts do not fit together.
        CheckpointError: A checkpoint cannot be read.
    """
    # torch and transformers cost seconds to import, and only recipes with experts need them.
    from mcompose.compose.experts.encoder import find_encoder  # noqa: PLC0415
    from mcompose.compose.experts.probe import probe_expert  # noqa: PLC0415
    from mcompose.modeling import expert_summary  # noqa: PLC0415

    checkpoint = opened(f"expert '{name}'", spec.encoder, loaded, weights=weights)
    if checkpoint.quantised:
        raise CompositionError(
            f"The encoder of expert '{name}' is quantised ({checkpoint.quantised}) and cannot be copied.",
            hint="Use the checkpoint that it was quantised from.",
        )
    encoder = find_encoder(checkpoint, modality=spec.modality, who=f"expert '{name}'")
    folder = checkpoint.folder
    if spec.processor is not None:
        folder = opened(f"processor of '{name}'", spec.processor, loaded, weights=False).folder
    settings, trained = projector_of(name, spec, loaded, weights=weights)
    entry = {
        "model_type": encoder.model_type,
        "class_name": encoder.class_name,
        "config": encoder.config,
        "modality": spec.modality,
        "domain": spec.domain or name,
        "layer": spec.layer,
        "skip": _skipped(spec, encoder),
        "padding": spec.padding,
        "projector": settings,
    }
    probed = probe_expert(name, entry, processor=folder, text_width=text_width)
    entry["projector"] = {**settings, **probed.measured}
    counted = spec.padding == "drop" and spec.projector.kind != "resampler"
    entry["tokens"] = "attention_mask" if counted else probed.tokens
    inputs = _with_mask(name, spec, probed.inputs, encoder)
    if spec.store == "reference":
        entry["reference"] = _reference(checkpoint, encoder, weights=weights)
    jobs = [] if spec.store == "reference" else _encoder_jobs(name, checkpoint, encoder)
    jobs += projector_jobs(name, probed.shapes, trained, seed=loaded.recipe.merge.seed)
    return OutputExpert(
        name,
        entry,
        expert_summary(entry, inputs=inputs, vectors=probed.vectors),
        folder,
        tuple(jobs),
        dropped=tuple(_dropped(name, spec, encoder)),
        new=NewExpert(spec, checkpoint),
    )


def _skipped(spec: Expert, encoder: FoundEncoder) -> int:
    if isinstance(spec.class_token, int):
        return spec.class_token
    return encoder.leading if spec.class_token == "drop" else 0  # noqa: S105 - a word of recipes


def _with_mask(name: str, spec: Expert, inputs: list[str], encoder: FoundEncoder) -> list[str]:
    """Returns the inputs, with the mask that padding is told by."""
    masks = ("attention_mask", "pixel_attention_mask", "flattened_patches")
    if spec.padding == "keep" or any(mask in inputs for mask in masks):
        return inputs
    if spec.modality == "audio" and encoder.model_type == "whisper":
        return [*inputs, "attention_mask"]
    raise CompositionError(
        f"The processor of expert '{name}' tells no padding, so that it cannot be {spec.padding}ped."
        if spec.padding == "drop"
        else f"The processor of expert '{name}' tells no padding, so that it cannot be masked.",
        hint="Leave 'padding' out: its encoder fills all of its vectors.",
    )


def _reference(checkpoint: Checkpoint, encoder: FoundEncoder, *, weights: bool) -> dict[str, Any]:
    """Returns what fetches the encoder again, and tells that it is the same."""
    prefix = next((key.removesuffix(path) for path, key in encoder.keys.items() if key.endswith(path)), "")
    spelt = {path: key for path, key in encoder.keys.items() if key != prefix + path}
    files = dict.fromkeys(checkpoint.tensors[key].file for key in encoder.keys.values())
    is_hub = checkpoint.ref.kind == "hub"
    digests = {path.name: checkpoint.digests.get(path.name, "") for path in files}
    if weights:
        digests |= {path.name: digest_file(path).sha256 for path in files if not digests[path.name]}
    return {
        "id": checkpoint.ref.location if is_hub else str(checkpoint.folder.resolve()),
        "commit": checkpoint.commit,
        "sha256": digests,
        "prefix": prefix,
        **({"keys": spelt} if spelt else {}),
    }


def _encoder_jobs(name: str, checkpoint: Checkpoint, encoder: FoundEncoder) -> list[TensorJob]:
    return [
        copy_job(f"model.experts.{name}.encoder.{path}", checkpoint.tensors[key], f"{EXPERT}:{name}", source=name)
        for path, key in encoder.keys.items()
    ]


def _dropped(name: str, spec: Expert, encoder: FoundEncoder) -> list[Dropped]:
    rows = [Dropped(name, key, EXPERT, reason) for key, reason in encoder.unused.items()]
    if spec.store == "reference":
        rows += [Dropped(name, key, EXPERT, "kept by reference") for key in encoder.keys.values()]
    return rows
