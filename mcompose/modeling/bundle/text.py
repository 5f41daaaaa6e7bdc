"""Writes the text of one generated file, and refuses what would change its meaning there."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from .source import Source, path_of

__all__ = ["check_text", "write_text"]

_WIDTH = 120
# The one statement that sections may repeat: in one file it makes one logger.
_LOGGER = "logger = logging.get_logger(__name__)"
# What transformers' loader takes for an import of a neighbour, also inside a docstring.
_SEEN_BY_LOADER = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


def write_text(name: str, sources: Sequence[Source], homes: Mapping[str, str], version: str) -> str:
    """Returns the text of one generated file.

    Args:
        name: The file, without ``.py``.
        sources: Its sources, each behind what it needs.
        homes: Source file -> generated file, of this file and all earlier ones.
        version: Version of mcompose that the file names.

    Raises:
        ValueError: A name would have two meanings, or an import leads to a later file.
    """
    _check_names(name, sources)
    pragmas = sorted({pragma for source in sources for pragma in source.pragmas})
    public = sorted((public for source in sources for public in source.public), key=_kind_then_name)
    parts = [*pragmas, _title(name, sources, version), "", "from __future__ import annotations", ""]
    parts += [*_write_imports(name, sources, homes), "__all__ = [", *(f'    "{own}",' for own in public), "]"]
    for source in sources:
        rule = f"# {'=' * (_WIDTH - 2)}"
        parts += ["", "", rule, f"# {source.path}", rule, source.docstring, "", source.body]
    return "\n".join(parts) + "\n"


def _write_imports(name: str, sources: Sequence[Source], homes: Mapping[str, str]) -> list[str]:
    """Returns the lines that import what all sections of a file need."""
    entries = [(source, entry) for source in sources for entry in source.imports]
    outside = {entry.written for _, entry in entries if not entry.is_island and not entry.for_types}
    outside -= {("__future__", "annotations", ""), ("typing", "TYPE_CHECKING", "")}
    for_types = {entry.written for _, entry in entries if not entry.is_island and entry.for_types} - outside
    if for_types:
        outside.add(("typing", "TYPE_CHECKING", ""))
    beside: dict[str, set[tuple[str, str]]] = {}
    for source, entry in entries:
        if entry.is_island and entry.module not in homes:
            raise ValueError(
                f"{source.path} names types of {path_of(entry.module)}, which goes into a later file than {name}.py. "
                "Move the type into a file that both may import."
            )
        if entry.is_island and homes[entry.module] != name:
            beside.setdefault(f".{homes[entry.module]}", set()).add((entry.attribute, ""))
    standard = {written for written in outside if written[0].partition(".")[0] in sys.stdlib_module_names}
    blocks = [_import_lines(standard), _import_lines(outside - standard)]
    blocks.append([line for module in sorted(beside) for line in _from_lines(module, beside[module])])
    if for_types:
        blocks.append(["if TYPE_CHECKING:", *(f"    {line}" for line in _import_lines(for_types))])
    return [line for block in blocks if block for line in (*block, "")]


def _check_names(name: str, sources: Sequence[Source]) -> None:
    """Refuses names with two meanings, and names that hide Python's own."""
    meanings: dict[str, tuple[object, str]] = {}
    for source in sources:
        here: list[tuple[str, object]] = [
            (entry.name, (path_of(entry.module), "") if entry.is_island else entry.meaning) for entry in source.imports
        ]
        for own in sorted(source.defined):
            same = own == "logger" and _LOGGER in source.body.splitlines()
            here.append((own, _LOGGER if same else (source.path, "")))
        for own, meaning in here:
            if hasattr(builtins, own):
                raise ValueError(f"{source.path} gives {own!r} a new meaning, for all of {name}.py. Rename it.")
            known, where = meanings.setdefault(own, (meaning, source.path))
            if known != meaning:
                raise ValueError(
                    f"{own!r} means one thing in {where} and another in {source.path}, and both go into {name}.py. "
                    "Rename one, or let one file define it for both."
                )


def _title(name: str, sources: Sequence[Source], version: str) -> str:
    what = {"configuration": "Configuration", "modeling": "Network", "processing": "Processor"}[name.partition("_")[0]]
    whose = {"mcompose": "a composed model", "points": "the point-cloud model", "frames": "small clips"}
    listed = "\n".join(f"- {source.path}" for source in sources)
    return (
        f'"""{what} of {whose[name.partition("_")[2]]}, generated from the sources of mcompose {version}.'
        "\n\nDo not edit this file: it is written anew whenever a checkpoint is. It holds one section per source file "
        "of\nmcompose/modeling, each behind the ones that it needs, with the text of the source unchanged; the imports "
        f"of all\nsections stand once, here at the top. The sections:\n\n{listed}\n" + '"""'
    )


def _import_lines(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    whole = sorted((module, alias) for module, attribute, alias in entries if not attribute)
    lines = [f"import {module} as {alias}" if alias else f"import {module}" for module, alias in whole]
    for origin in sorted({module for module, attribute, _ in entries if attribute}):
        lines += _from_lines(origin, {(name, alias) for module, name, alias in entries if module == origin and name})
    return lines


def _from_lines(origin: str, names: Iterable[tuple[str, str]]) -> list[str]:
    ordered = sorted(names, key=lambda entry: _kind_then_name(entry[0]))
    written = [f"{name} as {alias}" if alias else name for name, alias in ordered]
    line = f"from {origin} import {', '.join(written)}"
    return [line] if len(line) <= _WIDTH else [f"from {origin} import (", *(f"    {name}," for name in written), ")"]


def _kind_then_name(name: str) -> tuple[int, str]:
    # Constants, classes, functions: as the formatter of the sources sorts them.
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2), name


def check_text(name: str, text: str, files: Mapping[str, str]) -> None:
    """Refuses a generated file that transformers' loader would misread.

    Args:
        name: The file, without ``.py``.
        text: What it holds.
        files: The files so far, this one among them.

    Raises:
        ValueError: A line looks like an import of a file that is not there.
        SyntaxError: The text is not Python.
    """
    for found in _SEEN_BY_LOADER.finditer(text):
        needed = found.group(1) or found.group(2)
        if f"{needed}.py" not in files or needed == name:
            raise ValueError(
                f"A line of {name}.py reads like an import of '.{needed}' to transformers' loader, which would look "
                f"for that file: {found.group(0).strip()!r}. Write the sentence in another way."
            )
    compile(text, f"{name}.py", "exec")
