"""What an output remembers: both recipes, the lock file, the ledger.

Nothing here depends on the clock or on the machine's paths: the same recipe gives the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose import __version__
from mcompose.checkpoint import digest_file
from mcompose.checkpoint.digest import digest_file_range
from mcompose.ledger import Ledger, SourceRow, StepRow, TensorRow
from mcompose.merge import find_method

if TYPE_CHECKING:
    from mcompose.compose.blueprint import Blueprint
    from mcompose.compose.sources import SourceSet
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe
    from mcompose.refs import ModelRef

__all__ = ["FOLDER", "library_versions", "lock_text", "make_ledger", "source_digests"]

FOLDER = "mcompose"
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
        sources=tuple(_source_row(source, sources) for source in sources.everything),
        tensors=tuple(rows),
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


def _portable(ref: ModelRef) -> str:
    """The reference as written, but never a path of this machine."""
    if ref.kind == "hub" or not Path(ref.location).expanduser().is_absolute():
        return str(ref)
    return f"local:{Path(ref.location).name}"


def source_digests(sources: SourceSet) -> dict[str, dict[str, Any]]:
    """What every source was, file by file.

    Weight files of the Hub are known by their commit. Local ones are hashed whole with xxh3-128: it tells that a file
    changed, and does not protect against somebody who forges one. Small files are hashed with sha256.

    Args:
        sources: The opened sources.

    Returns:
        Source to its reference, commit and files.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return dict(pool.map(_source_entry, sources.everything))


def _source_entry(source: SourceParts) -> tuple[str, dict[str, Any]]:
    checkpoint = source.checkpoint
    small = [checkpoint.folder / "config.json", *checkpoint.sidecars()]
    files = _weights(checkpoint.folder, checkpoint.weight_files, commit=checkpoint.commit)
    files |= {path.relative_to(checkpoint.folder).as_posix(): vars(digest_file(path)) for path in small}
    entry: dict[str, Any] = {"ref": _portable(checkpoint.ref), "commit": checkpoint.commit, "files": files}
    adapter = source.adapter
    if adapter is not None:
        names = dict.fromkeys(tensor.file.name for tensor in adapter.tensors.values())
        files = _weights(adapter.folder, names, commit=adapter.commit)
        files["adapter_config.json"] = vars(digest_file(adapter.folder / "adapter_config.json"))
        entry["adapter"] = {"ref": _portable(adapter.ref), "commit": adapter.commit, "files": files}
    return source.name, entry


def _weights(folder: Path, names: Iterable[str], *, commit: str | None) -> dict[str, Any]:
    """Size of every weight file, and its digest where no commit vouches for it."""
    files: dict[str, Any] = {}
    for name in names:
        size = (folder / name).stat().st_size
        files[name] = {"size": size}
        if not commit:
            files[name]["xxh3"] = digest_file_range(folder / name, 0, size).removeprefix("xxh3:")
    return files


def lock_text(folder: Path, weight_files: Mapping[str, int], sources: Mapping[str, Any]) -> str:
    """The lock file: what the output was made from and what it holds.

    Args:
        folder: The output, complete but for the lock file and the card.
        weight_files: Name to size of the output's weight files; their tensors are hashed in the ledger.
        sources: From ``source_digests``.

    Returns:
        JSON.
    """
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _is_working_file(name):
            files[name] = vars(digest_file(path))
    files.update({name: {"size": size} for name, size in weight_files.items()})
    table = {"format": 1, "versions": library_versions(), "sources": sources, "files": files}
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _is_working_file(name: str) -> bool:
    """Files of the run itself, and those that are derived from the lock file and the ledger."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return hidden or name in {"README.md", f"{FOLDER}/lock.json"} or name.endswith(".safetensors")
