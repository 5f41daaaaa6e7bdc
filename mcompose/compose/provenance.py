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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose import __version__
from mcompose.checkpoint import digest_file
from mcompose.ledger import Ledger, SourceRow, StepRow, TensorRow
from mcompose.merge import find_method
from mcompose.on_disk import CARD, LOCK

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.compose.blueprint import Blueprint
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe
    from mcompose.refs import ModelRef

__all__ = ["library_versions", "lock_text", "make_ledger", "portable_ref", "source_digests"]

LIBRARIES = ("transformers", "numpy", "numba", "mergekit")
"""Beside mcompose, whose versions decide the result."""


def library_versions() -> dict[str, str]:
    """Versions of everything that shaped the result."""
    return {"mcompose": __version__, **{name: version(name) for name in LIBRARIES}}


def make_ledger(
    loaded: LoadedRecipe, blueprint: Blueprint, rows: Sequence[TensorRow], *, details: Mapping[str, Any]
) -> Ledger:
    """Returns the record of a merge.

    Args:
        loaded: The recipe.
        blueprint: Decisions about the output.
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
            *(row for addition in blueprint.additions for row in addition.source_rows()),
        ),
        tensors=tuple(rows),
        files=tuple(row for addition in blueprint.additions for row in addition.file_rows()),
        steps=(StepRow("merge", f"mcompose merge {loaded.path.name}", details=dict(details)),),
    )


def _source_row(source: SourceParts, sources: SourceSet) -> SourceRow:
    checkpoint = source.checkpoint
    return SourceRow(
        name=source.name,
        ref=portable_ref(source.checkpoint.ref),
        model_type=source.anatomy.model_type,
        modalities=tuple(m for m, name in sources.modalities.items() if name == source.name),
        licence=checkpoint.licence,
        base_model=checkpoint.base_model,
        commit=checkpoint.commit or "",
    )


def portable_ref(ref: ModelRef) -> str:
    """Returns a reference as it was written, but never a path of this machine."""
    if ref.kind == "hub" or not Path(ref.location).expanduser().is_absolute():
        return str(ref)
    return f"local:{Path(ref.location).name}"


def source_digests(blueprint: Blueprint) -> dict[str, dict[str, Any]]:
    """Returns what every checkpoint was, file by file; the ledger has the digest of every tensor that was read.

    Args:
        blueprint: Decisions about the output.

    Returns:
        Name of each source, and of each checkpoint that an extension reads, to its reference, commit and files.
    """
    entries = dict(_source_entry(source) for source in blueprint.sources.everything)
    for addition in blueprint.additions:
        entries |= {name: _checkpoint_entry(checkpoint) for name, checkpoint in addition.checkpoints().items()}
    return entries


def _checkpoint_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.folder / "config.json"
    small = [*([config] if config.is_file() else []), *checkpoint.sidecars()]  # a folder of a graph may have none
    files = {name: _weight_file(checkpoint, name) for name in checkpoint.weight_files}
    files |= {path.relative_to(checkpoint.folder).as_posix(): vars(digest_file(path)) for path in small}
    return {"ref": portable_ref(checkpoint.ref), "commit": checkpoint.commit, "files": files}


def _source_entry(source: SourceParts) -> tuple[str, dict[str, Any]]:
    entry = _checkpoint_entry(source.checkpoint)
    adapter = source.adapter
    if adapter is not None:
        paths = [adapter.folder / "adapter_config.json", *dict.fromkeys(t.file for t in adapter.tensors.values())]
        files = {path.name: vars(digest_file(path)) for path in paths}
        entry["adapter"] = {"ref": portable_ref(adapter.ref), "commit": adapter.commit, "files": files}
    return source.name, entry


def _weight_file(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Size of a weight file, and the digest that the Hub states."""
    facts: dict[str, Any] = {"size": (checkpoint.folder / name).stat().st_size}
    return facts | ({"sha256": checkpoint.digests[name]} if name in checkpoint.digests else {})


def lock_text(folder: Path, weight_files: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Any]) -> str:
    """Returns the lock file: what the output was made from and what it holds.

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
