"""Exports a lineage as a full checkpoint: the root's files with trained tensors replaced, written atomically.

Bytes that no stage changed are copied as they are. The ledger keeps the rows of the merge, with new digests for trained
tensors, and gets one step row per stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcompose import __version__
from mcompose.align.data.tiles import patched_processor
from mcompose.align.results.folder import PLOT
from mcompose.anatomy import part_label
from mcompose.checkpoint import (
    Layout,
    StagedOutput,
    TensorDigest,
    TensorEntry,
    TensorFiles,
    plan_layout,
    read_json_object,
)
from mcompose.compose import library_versions, lock_text
from mcompose.errors import CheckpointError, InterruptedRunError
from mcompose.ledger import Ledger, StepRow, TensorRow
from mcompose.modeling import generate_files
from mcompose.on_disk import CARD, COMPOSED_TYPE, FOLDER, LEDGER, LOCK, RECIPE, RESOLVED

if TYPE_CHECKING:
    from mcompose.align.results.lineage import Lineage, StageResult

__all__ = ["ExportRequest", "export"]

_BLOCK = 1 << 22


@dataclass(frozen=True)
class ExportRequest:
    """Request to export a lineage.

    Args:
        folder: Folder to write; it may hold an earlier output.
        recipe: Bytes of the recipe as its author wrote it.
        recipe_file: File name of the recipe.
        name: Name of the recipe.
        max_shard_size: Largest size of one weight file, in bytes.
        resume: Whether an interrupted export is resumed.
        card: Function that makes ``README.md`` from the ledger and the unfinished folder; None for no card.
    """

    folder: Path
    recipe: bytes
    recipe_file: str
    name: str
    max_shard_size: int
    resume: bool = True
    card: Callable[[Ledger, Path], str] | None = None


def export(lineage: Lineage, request: ExportRequest) -> Path:
    """Writes a full checkpoint.

    Args:
        lineage: Checkpoint with the stages run on it.
        request: Folder and settings.

    Returns:
        The folder of the checkpoint.

    Raises:
        OutputError: The folder holds files that are not an earlier output.
        StorageError: The disk is full.
        InterruptedRunError: The user stopped the export; the next run resumes it.
    """
    specs = [(key, lineage.dtypes[key], shape) for key, shape in lineage.shapes.items()]
    metadata = {key: value for key, value in lineage.root.metadata.items() if key != "format"}
    layout = plan_layout(specs, max_shard_size=request.max_shard_size, metadata=metadata)
    identity = [__version__, lineage.identity, request.max_shard_size, hashlib.sha256(request.recipe).hexdigest()]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    with StagedOutput.open(request.folder, fingerprint=fingerprint, resume=request.resume) as staged:
        _write_files(staged, lineage, request)
        staged.allocate(layout)
        try:
            digests = _write_tensors(staged, lineage, layout)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "The export was stopped.", hint="Run the same command again to resume it."
            ) from None
        ledger = _ledger(lineage, request, digests)
        staged.write_file(LEDGER, ledger.to_json())
        sizes = {shard.filename: {"size": shard.size} for shard in layout.shards}
        staged.write_file(LOCK, lock_text(staged.partial, sizes, _sources(lineage)))
        if request.card is not None:
            staged.write_file(CARD, request.card(ledger, staged.partial))
        return staged.finish()


def _write_files(staged: StagedOutput, lineage: Lineage, request: ExportRequest) -> None:
    """Writes all files except weights."""
    root = lineage.root
    tiles, patched = _inference_tiles(lineage), 0
    for path in root.sidecars():
        place = path.relative_to(root.folder)
        is_experts = len(place.parts) > 1 and place.parts[1] in lineage.config.get("experts", {})
        text = None if tiles is None or is_experts else patched_processor(path, tiles)
        if text is None:
            staged.copy_file(path, place.as_posix())
        else:
            staged.write_file(place.as_posix(), text)
            patched += 1
    if tiles is not None and not patched:
        raise CheckpointError(
            f"'tiles.inference: {tiles}' cannot be applied: no processor of '{root.folder}' has a limit of tiles.",
            hint="Remove 'tiles.inference'.",
        )
    for path in root.graphs():
        staged.copy_file(path, path.relative_to(root.folder).as_posix())
    _write_code(staged, lineage)
    if lineage.config == root.config:
        staged.copy_file(root.folder / "config.json", "config.json")
    else:
        staged.write_file("config.json", json.dumps(lineage.config, indent=2, ensure_ascii=False) + "\n")
    staged.write_file(RECIPE, request.recipe)
    resolved = root.folder / RESOLVED
    if resolved.is_file():
        staged.copy_file(resolved, RESOLVED)
    for result in lineage.results:
        staged.write_file(f"{FOLDER}/stages/{result.number}.json", json.dumps(result.record, indent=1) + "\n")
        if (result.folder / PLOT).is_file():
            staged.copy_file(result.folder / PLOT, f"{FOLDER}/stages/{result.number}.png")


def _write_code(staged: StagedOutput, lineage: Lineage) -> None:
    if lineage.config.get("model_type") == COMPOSED_TYPE:
        for name, text in generate_files("composed").items():
            staged.write_file(name, text)
    else:
        for path in lineage.root.code():
            staged.copy_file(path, path.name)


def _inference_tiles(lineage: Lineage) -> int | None:
    """Returns the most tiles of an image in inference, from the last stage that sets it; None if none does."""
    limits = [(result.record["settings"].get("tiles") or {}).get("inference") for result in lineage.results]
    return next((limit for limit in reversed(limits) if limit is not None), None)


def _write_tensors(staged: StagedOutput, lineage: Lineage, layout: Layout) -> dict[str, str]:
    """Writes the tensors that are not written yet; returns key to digest of all."""
    with TensorFiles() as files:
        for key, place in layout.places.items():
            if key in staged.finished:
                continue
            digest = TensorDigest()
            if key in lineage.changed:
                data = lineage.read(key).reshape(-1).view(np.uint8).data
                staged.pwrite_all(place.filename, place.offset, data)
                digest.update(data)
            else:
                _copy(staged, lineage.root.tensors[key], files, digest, start=(place.filename, place.offset))
            staged.record(key, digest=digest.text())
    return {key: staged.finished[key].digest for key in layout.places}


def _copy(
    staged: StagedOutput, entry: TensorEntry, files: TensorFiles, digest: TensorDigest, *, start: tuple[str, int]
) -> None:
    shard, offset = start
    buffer = memoryview(bytearray(min(_BLOCK, entry.nbytes)))
    for done in range(0, entry.nbytes, _BLOCK):
        block = buffer[: min(_BLOCK, entry.nbytes - done)]
        files.read_into(entry, block, start=done)
        staged.pwrite_all(shard, offset + done, block)
        digest.update(block)


def _ledger(lineage: Lineage, request: ExportRequest, digests: Mapping[str, str]) -> Ledger:
    ledger = _parent_ledger(lineage, request)
    rows = {row.name: row for row in ledger.tensors if row.action != "dropped"}
    tensors = [_row(lineage, key, rows.get(key), digest) for key, digest in digests.items()]
    tensors += [row for row in ledger.tensors if row.action == "dropped"]
    steps = tuple(step for step in ledger.steps if step.step != "eval")  # scores of other weights
    steps += tuple(_step(result, request.recipe_file) for result in lineage.results)
    return replace(ledger, tensors=tuple(tensors), steps=steps)


def _parent_ledger(lineage: Lineage, request: ExportRequest) -> Ledger:
    try:
        return Ledger.read(lineage.root.folder)
    except CheckpointError:  # not an output of mcompose
        modalities = lineage.anatomy.modalities
        return Ledger(
            request.name, "align", "short fine-tune", output_format="native", modalities=modalities,
            versions=library_versions(),
        )  # fmt: skip


def _row(lineage: Lineage, key: str, row: TensorRow | None, digest: str) -> TensorRow:
    if row is None:
        slot = lineage.anatomy.slots[key]
        part = part_label(slot.name, slot.part)
        row = TensorRow(key, "copied", part, dtype=lineage.dtypes[key], shape=lineage.shapes[key], digest=digest)
    stage = lineage.changed.get(key)
    if stage is None:
        return row
    return replace(row, action="trained", digest=digest, note=f"{row.action}, then trained in stage {stage}")


def _step(result: StageResult, recipe: str) -> StepRow:
    record = result.record
    names = ("stage", "plan", "precision", "data", "trained", "losses", "warnings")
    details: dict[str, Any] = {name: record[name] for name in names if name != "warnings" or record.get(name)}
    details["frozen_tensors"] = sum(part["tensors"] for part in record["frozen"].values())
    return StepRow("align", f"mcompose align {recipe} --stage {result.number}", details=details)


def _sources(lineage: Lineage) -> dict[str, Any]:
    """Returns the sources in the root's lock, or the root itself if it is not an output of mcompose."""
    path = lineage.root.folder / LOCK
    if path.is_file():
        return dict(read_json_object(path).get("sources") or {})
    return {"parent": {"ref": f"local:{lineage.root.folder.name}", "identity": lineage.identity}}
