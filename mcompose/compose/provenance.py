"""What an output remembers: both recipes, the lock file, the ledger.

Nothing here depends on the clock or on the machine's paths: the same recipe gives the same files. What is hashed, and
what for:

- every tensor that was read and every tensor that was written, by xxh3-128 in the pass that touches its bytes (the
  ledger): tells damage and difference, at the speed of memory; does not tell forgery;
- weight files of Hub sources, by the sha256 that the Hub itself states, and the commit: tells forgery too;
- small files, by sha256;
- the output's weight files by sha256 where it is asked for (``mcompose merge --sha256``), and always by ``mcompose
  push``: what is published can be checked against forgery.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose import __version__
from mcompose.anatomy.part import EXPERT
from mcompose.checkpoint import digest_file
from mcompose.ledger import FileRow, Ledger, SourceRow, StepRow, TensorRow
from mcompose.merge import find_method
from mcompose.on_disk import CARD, LOCK

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.compose.blueprint import Blueprint
    from mcompose.compose.experts.expert import OutputExpert
    from mcompose.compose.experts.plan import ExpertSet
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe
    from mcompose.refs import ModelRef

__all__ = ["expert_digests", "library_versions", "lock_text", "make_ledger", "source_digests"]

"""Folder of the output that holds all of this."""

LIBRARIES = ("transformers", "numpy", "numba", "mergekit")
"""Beside mcompose, whose versions decide the result."""


def library_versions() -> dict[str, str]:
    """Versions of everything that shaped the result."""
    return {"mcompose": __version__, **{name: version(name) for name in LIBRARIES}}


def make_ledger(
    loaded: LoadedRecipe, blueprint: Blueprint, rows: Sequence[TensorRow], *, details: Mapping[str, Any]
) -> Ledger:
    """The record of a merge.

    Args:
        loaded: The recipe.
        blueprint: What was decided.
        rows: One row per tensor, written or dropped.
        details: Figures of the step that do not depend on the machine.

    Returns:
        The ledger.
    """
    recipe = loaded.recipe
    method = find_method(recipe.merge.method)
    sources = blueprint.sources
    return Ledger(
        name=recipe.name,
        method=recipe.merge.method,
        method_title=method.title,
        method_paper=method.paper,
        output_format=blueprint.format,
        modalities=tuple(sources.modalities) if blueprint.format != "text" else (),
        versions=library_versions(),
        sources=(
            *(_source_row(source, sources) for source in sources.everything),
            *(_expert_row(expert) for expert in blueprint.experts.experts if expert.new),
        ),
        tensors=tuple(rows),
        files=tuple(row for expert in blueprint.experts.experts for row in _file_rows(expert)),
        steps=(StepRow("merge", f"mcompose merge {loaded.path.name}", details=dict(details)),),
    )


def _source_row(source: SourceParts, sources: SourceSet) -> SourceRow:
    checkpoint = source.checkpoint
    return SourceRow(
        name=source.name,
        ref=_portable(source.checkpoint.ref),
        model_type=source.anatomy.model_type,
        modalities=tuple(m for m, name in sources.modalities.items() if name == source.name),
        licence=checkpoint.licence,
        base_model=checkpoint.base_model,
        commit=checkpoint.commit or "",
    )


def _expert_row(expert: OutputExpert) -> SourceRow:
    assert expert.new is not None, "carried experts belong to their source"
    checkpoint = expert.new.checkpoint
    return SourceRow(
        name=expert.name,
        ref=_portable(checkpoint.ref),
        model_type=checkpoint.model_type or ("onnx" if "onnx" in expert.entry else ""),
        modalities=(expert.modality,),
        licence=checkpoint.licence,
        base_model=checkpoint.base_model,
        commit=checkpoint.commit or "",
    )


def _file_rows(expert: OutputExpert) -> Iterator[FileRow]:
    """The files of an ONNX expert: those in the output, and those that are left where they are."""
    part, sources = f"{EXPERT}:{expert.name}", (expert.source or expert.name,)
    for file in expert.files:
        note = f"was '{file.path.relative_to(expert.new.checkpoint.folder).as_posix()}'" if expert.new else ""
        yield FileRow(file.name, "copied", part, sources, file.sha256, note)
    for file in expert.left:
        yield FileRow(file.name, "dropped", part, sources, file.sha256, "kept by reference")


def _portable(ref: ModelRef) -> str:
    """The reference as written, but never a path of this machine."""
    if ref.kind == "hub" or not Path(ref.location).expanduser().is_absolute():
        return str(ref)
    return f"local:{Path(ref.location).name}"


def source_digests(sources: SourceSet) -> dict[str, dict[str, Any]]:
    """What every source was, file by file; the ledger has the digest of every tensor that was read.

    Args:
        sources: The opened sources.

    Returns:
        Source to its reference, commit and files.
    """
    return dict(_source_entry(source) for source in sources.everything)


def expert_digests(experts: ExpertSet) -> dict[str, dict[str, Any]]:
    """The same of the checkpoints that new experts came from."""
    return {expert.name: _checkpoint_entry(expert.new.checkpoint) for expert in experts.experts if expert.new}


def _checkpoint_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.folder / "config.json"
    small = [*([config] if config.is_file() else []), *checkpoint.sidecars()]  # a folder of a graph may have none
    files = {name: _weight_file(checkpoint, name) for name in checkpoint.weight_files}
    files |= {path.relative_to(checkpoint.folder).as_posix(): vars(digest_file(path)) for path in small}
    return {"ref": _portable(checkpoint.ref), "commit": checkpoint.commit, "files": files}


def _source_entry(source: SourceParts) -> tuple[str, dict[str, Any]]:
    entry = _checkpoint_entry(source.checkpoint)
    adapter = source.adapter
    if adapter is not None:
        paths = [adapter.folder / "adapter_config.json", *dict.fromkeys(t.file for t in adapter.tensors.values())]
        files = {path.name: vars(digest_file(path)) for path in paths}
        entry["adapter"] = {"ref": _portable(adapter.ref), "commit": adapter.commit, "files": files}
    return source.name, entry


def _weight_file(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Size of a weight file, and the digest that the Hub states."""
    facts: dict[str, Any] = {"size": (checkpoint.folder / name).stat().st_size}
    return facts | ({"sha256": checkpoint.digests[name]} if name in checkpoint.digests else {})


def lock_text(folder: Path, weight_files: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Any]) -> str:
    """The lock file: what the output was made from and what it holds.

    Args:
        folder: The output, complete but for the lock file and the card.
        weight_files: Name to size, and sha256 where asked for, of the output's weight files.
        sources: From ``source_digests``.

    Returns:
        JSON.
    """
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _is_working_file(name):
            files[name] = vars(digest_file(path))
    files.update({name: dict(facts) for name, facts in weight_files.items()})
    table = {"format": 1, "versions": library_versions(), "sources": sources, "files": files}
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _is_working_file(name: str) -> bool:
    """Files of the run itself, and those that are derived from the lock file and the ledger."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return hidden or name in {CARD, LOCK} or name.endswith(".safetensors")
