"""``inspect`` and ``plan``: what can be read from headers alone. Known families need no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mcompose.anatomy import can_compose
from mcompose.compose import (
    check_composed,
    check_output,
    how_it_composes,
    make_blueprint,
    open_parts,
    output_folder,
)
from mcompose.merge import SourceParts
from mcompose.pipeline.reports import InspectReport, PlanReport, SourceReport
from mcompose.recipe import load_recipe
from mcompose.refs import ModelRef

__all__ = ["inspect", "plan"]


def inspect(refs: Sequence[ModelRef]) -> InspectReport:
    """Tells the parts of checkpoints, and whether several can be composed.

    Args:
        refs: The checkpoints; local paths start from the current folder.

    Returns:
        The report.

    Raises:
        CheckpointError: One cannot be read.
        AnatomyError: The parts of a checkpoint cannot be determined.
    """
    opened = [open_parts(ref, name=str(ref), relative_to=Path(), weights=False) for ref in refs]
    reasons = can_compose({parts.name: parts.anatomy for parts in opened}) if len(opened) > 1 else []
    return InspectReport(tuple(_source_report(parts) for parts in opened), tuple(reasons))


def _source_report(parts: SourceParts) -> SourceReport:
    anatomy = parts.anatomy
    shape = parts.entry(parts.embedding.key).shape if parts.embedding else ()
    rows, width = shape if len(shape) == 2 else (0, 0)
    stated = anatomy.text_config.get("hidden_size")
    return SourceReport(
        source=parts.name,
        model_type=anatomy.model_type,
        architecture=anatomy.architecture,
        language=str(anatomy.text_config.get("model_type", "")),
        num_layers=anatomy.num_layers,
        hidden_size=stated if isinstance(stated, int) else width,
        vocabulary_rows=rows,
        modalities=anatomy.modalities,
        placeholders=dict(anatomy.placeholders),
        tied=anatomy.tied,
        licence=parts.checkpoint.licence,
        refusal=anatomy.refusal,
        composes=how_it_composes(anatomy),
        warnings=anatomy.warnings,
        rows=_part_rows(parts),
    )


def _part_rows(parts: SourceParts) -> tuple[tuple[str, int, int, str], ...]:
    """Returns name, tensors, parameters and dtypes of every part, in the order of the checkpoint."""
    counts: dict[str, list[int]] = {}
    dtypes: dict[str, dict[str, None]] = {}
    for slot in parts.anatomy.slots.values():
        entry = parts.entry(slot.key)
        count = counts.setdefault(slot.part, [0, 0])
        count[0] += 1
        count[1] += math.prod(entry.shape)
        dtypes.setdefault(slot.part, {})[entry.dtype] = None
    return tuple((part, *count, ", ".join(dtypes[part])) for part, count in counts.items())  # pyright: ignore[reportReturnType]


def plan(recipe: Path, *, output: Path | None = None) -> PlanReport:
    """Decides what a merge would do, from headers and small files alone.

    Args:
        recipe: The recipe file.
        output: Folder to write; None for the recipe's.

    Returns:
        The report.

    Raises:
        RequestError: Anything that makes the recipe impossible.
    """
    loaded = load_recipe(recipe)
    folder = ""
    if output is not None or loaded.recipe.output.dir is not None:
        folder = str(output_folder(loaded, output))
        check_output(loaded, Path(folder))
    blueprint = make_blueprint(loaded, weights=False)
    if blueprint.format == "composed":
        check_composed(blueprint)
    return PlanReport(loaded.recipe.name, folder, loaded.recipe.merge.method, blueprint)
