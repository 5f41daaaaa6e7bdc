"""Translates a mergekit YAML into a recipe of schema 1 that describes the same merge.

What differs between the two formats, and how it is translated:

* mergekit writes folders and repositories the same way. A folder that exists beside the file becomes ``local:``,
  everything else ``hub:``.
* mergekit's parameter ``weight`` becomes ``weights``.
* In mergekit the base may be one of the models. It becomes a source for methods that treat it as one (linear, karcher,
  passthrough; for slerp it is the first endpoint, t = 0), and ``base`` for all others.
* mergekit sets a parameter for a model, a slice or the file, in this order of precedence, each with filters that may
  not match. This becomes one list of choices: the model's, the slice's, the file's, then mergekit's default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcompose.recipe.document import Document, KeyPath
from mcompose.recipe.fields import UNION
from mcompose.recipe.mergekit.schema import MergekitConfig, MergekitRef
from mcompose.recipe.mergekit.settings import NATIVE, Draft, Entry, Group, GroupSettings

__all__ = ["convert_mergekit"]

BASE_IS_SOURCE = ("linear", "karcher", "passthrough")
FIRST_IS_BASE = "slerp"
LONGEST_NAME = 56
"""Longest name that is derived from a model, in characters; leaves room for a number that makes names unique."""


def convert_mergekit(config: MergekitConfig, *, document: Document, path: Path) -> tuple[Document, tuple[str, ...]]:
    """Translates a mergekit YAML.

    Args:
        config: Content of the file.
        document: Values of the file with their lines.
        path: The file; folders are searched beside it.

    Returns:
        The recipe as a document of schema 1, with the lines of the mergekit file, and remarks on settings that have no
        effect.

    Raises:
        RecipeError: The merge cannot be expressed in schema 1.
    """
    out = Draft(document)
    groups = _slices(config) if config.slices else [_models(config)]
    for group in groups:
        _refuse_twice(group, document)
    base = _common_base(groups, config, document)
    if config.merge_method == FIRST_IS_BASE:
        groups = [_slerp_order(group, document) for group in groups]
    out.data = {"schema": 1, "name": _title(config.name or path.stem)}
    out.mark(("name",), at=("name",))
    if base is not None:
        _write_base(out, base, config, folder=path.parent)
    _write_sources(out, groups, base, folder=path.parent)
    merge: dict[str, Any] = {"method": _method(config.merge_method)}
    out.mark(("merge", "method"), at=("merge_method",))
    _write_dtype(out, merge, config)
    _write_tokenizer(out, merge, config, base)
    _write_settings(out, merge, groups, base, method=config.merge_method)
    if config.slices:
        _write_slices(out, merge, groups, base)
    out.data["merge"] = merge
    out.data["compose"] = {"towers": "merge"}  # mergekit merges all tensors of its models alike
    return Document(document.file, out.data, out.lines), tuple(out.notes)


def _method(name: str) -> str:
    return name if name in NATIVE else f"mergekit:{name}"


def _models(config: MergekitConfig) -> Group:
    """Returns the models as one group; as in mergekit, the base is added when it is not among them."""
    base = config.base_model
    entries = [
        Entry(model.model, ("models", index), model.parameters or {}) for index, model in enumerate(config.models or ())
    ]
    if base is not None and base not in [entry.ref for entry in entries]:
        entries.append(Entry(base, ("base_model",), {}))
    return Group(tuple(entries), base, ("models",), ((config.parameters or {}, ("parameters",)),))


def _slices(config: MergekitConfig) -> list[Group]:
    groups: list[Group] = []
    for index, piece in enumerate(config.slices or ()):
        at: KeyPath = ("slices", index)
        entries = tuple(
            Entry(source.model, (*at, "sources", number), source.parameters or {}, source.layer_range)
            for number, source in enumerate(piece.sources)
        )
        levels = ((piece.parameters or {}, (*at, "parameters")), (config.parameters or {}, ("parameters",)))
        groups.append(Group(entries, piece.base_model or config.base_model, at, levels))
    return groups


def _refuse_twice(group: Group, document: Document) -> None:
    refs = [entry.ref for entry in group.entries]
    for index, ref in enumerate(refs):
        if ref in refs[:index]:
            at = (*group.entries[index].at, "model")
            raise document.error(f"'{ref.path}' is listed twice.", at=at, hint="Remove one of the entries.")


def _common_base(groups: Sequence[Group], config: MergekitConfig, document: Document) -> MergekitRef | None:
    """Returns the base; None for methods that treat it as one of the sources."""
    if config.merge_method in {*BASE_IS_SOURCE, FIRST_IS_BASE}:
        return None
    base = groups[0].base
    for group in groups:
        if group.base != base:
            at = (*group.at, "base_model")
            message = "a different base for each slice is not built yet."
            raise document.error(message, at=at, hint="Use one 'base_model'.")
        if base is not None and base not in [entry.ref for entry in group.entries]:
            hint = f"mergekit requires it: add a source with 'model: {base.path}'."
            raise document.error("the slice lacks the base model.", at=group.at, hint=hint)
    return base


def _slerp_order(group: Group, document: Document) -> Group:
    """Puts the base first: slerp goes from it (t = 0) to the other model (t = 1)."""
    if group.base is None:
        hint = "Add it: the base is the endpoint at t = 0."
        raise document.error("slerp lacks the key 'base_model'.", at=("merge_method",), hint=hint)
    if len(group.entries) != 2 or group.base not in [entry.ref for entry in group.entries]:
        count = len(group.entries)
        raise document.error(f"slerp takes two models, one of them the base, not {count}.", at=group.at)
    return replace(group, entries=tuple(sorted(group.entries, key=lambda entry: entry.ref != group.base)))


def _write_base(out: Draft, base: MergekitRef, config: MergekitConfig, *, folder: Path) -> None:
    at: KeyPath = ("base_model",) if config.base_model is not None else ("slices", 0, "base_model")
    if base.adapter is not None:
        hint = "Merge the adapter into the base first."
        raise out.document.error("a base with an adapter is not built yet.", at=at, hint=hint)
    out.data["base"] = _spell(base.path, base.revision, folder=folder, out=out, at=at)
    out.mark(("base",), at=at)


def _write_sources(out: Draft, groups: Sequence[Group], base: MergekitRef | None, *, folder: Path) -> None:
    sources: list[dict[str, Any]] = []
    for entry in (entry for group in groups for entry in group.entries):
        if entry.ref in out.names or entry.ref == base:
            continue
        out.names[entry.ref] = name = _name(entry.ref, taken=out.names.values())
        at = (*entry.at, "model")
        model = _spell(entry.ref.path, entry.ref.revision, folder=folder, out=out, at=at)
        source = {"name": name, "model": model}
        if entry.ref.adapter is not None:
            revision = entry.ref.adapter_revision
            source["adapter"] = _spell(entry.ref.adapter, revision, folder=folder, out=out, at=at)
        out.mark(("sources", len(sources)), at=at)
        sources.append(source)
    if not sources:
        raise out.document.error("the recipe has no model besides the base.", at=groups[0].at, hint="Add a model.")
    out.data["sources"] = sources


def _spell(path: str, revision: str | None, *, folder: Path, out: Draft, at: KeyPath) -> str:
    """Returns a reference: ``local:`` for what is or looks like a folder, else ``hub:``."""
    is_local = path.startswith((".", "/", "~")) or (folder / path).is_dir()
    if is_local and revision:
        hint = f"Remove '@{revision}'."
        raise out.document.error(f"'{path}' is a folder and cannot have the revision '{revision}'.", at=at, hint=hint)
    return f"local:{path}" if is_local else f"hub:{path}" + (f"@{revision}" if revision else "")


def _name(ref: MergekitRef, *, taken: Iterable[str]) -> str:
    """Derives a unique name from a model: the last part of its path, or of its adapter's path."""
    stem = re.split(r"[/\\]", (ref.adapter or ref.path).rstrip("/\\"))[-1]
    name = re.sub(r"__+", "_", re.sub(r"[^A-Za-z0-9_-]+", "-", stem)).strip("-_")
    if not name or name == "base" or not name[0].isalpha():
        name = f"model-{name}".strip("-")
    name = name[:LONGEST_NAME].rstrip("-_")
    used, number, unique = list(taken), 1, name
    while unique in used:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _title(stem: str) -> str:
    return re.sub(r"[^\w .+-]+", "-", stem).strip(" .+-_") or "merge"


def _write_dtype(out: Draft, merge: dict[str, Any], config: MergekitConfig) -> None:
    key = "out_dtype" if config.out_dtype else "dtype"
    dtype = config.out_dtype or config.dtype
    if dtype:
        merge["dtype"] = dtype.removeprefix("torch.")
        out.mark(("merge", "dtype"), at=(key,))


def _write_tokenizer(out: Draft, merge: dict[str, Any], config: MergekitConfig, base: MergekitRef | None) -> None:
    at: KeyPath = ("tokenizer_source",) if config.tokenizer is None else ("tokenizer", "source")
    source = config.tokenizer_source if config.tokenizer is None else config.tokenizer.source
    if source is None:
        return
    if source == UNION:
        merge["tokenizer"] = UNION
        out.mark(("merge", "tokenizer"), at=at)
        return
    ref = config.base_model if source == "base" else source
    if ref is None:
        hint = "Add 'base_model', or name one of the models."
        raise out.document.error("the tokenizer is the base's, but 'base_model' is missing.", at=at, hint=hint)
    if ref != base and ref not in out.names:
        hint = "Name one of the merged models."
        raise out.document.error(f"'{ref.path}' provides the tokenizer but is not merged.", at=at, hint=hint)
    merge["tokenizer"] = "base" if ref == base else out.names[ref]
    out.mark(("merge", "tokenizer"), at=at)


def _write_settings(
    out: Draft, merge: dict[str, Any], groups: Sequence[Group], base: MergekitRef | None, *, method: str
) -> None:
    """Writes weights and parameters, for the merge or for each of several slices."""
    if len(groups) > 1:
        merge["slices"] = [{} for _ in groups]
    for index, group in enumerate(groups):
        for entry in group.entries:
            if entry.ref == base and entry.parameters:
                at = (*entry.at, "parameters")
                out.note("parameters of the base have no effect, as in mergekit.", at=at)
        target = merge["slices"][index] if len(groups) > 1 else merge
        at = ("merge", "slices", index) if len(groups) > 1 else ("merge",)
        merged = tuple(entry for entry in group.entries if entry.ref != base)
        GroupSettings(out, method, replace(group, entries=merged)).write(target, at=at)


def _write_slices(out: Draft, merge: dict[str, Any], groups: Sequence[Group], base: MergekitRef | None) -> None:
    pieces = merge.setdefault("slices", [{} for _ in groups])
    for index, group in enumerate(groups):
        out.mark(("merge", "slices", index), at=group.at)
        for number, entry in enumerate(group.entries):
            out.mark(("merge", "slices", index, "sources", number), at=(*entry.at, "layer_range"))
        pieces[index]["sources"] = [
            {
                "source": "base" if entry.ref == base else out.names[entry.ref],
                "layer_range": entry.layer_range,
            }
            for entry in group.entries
        ]
