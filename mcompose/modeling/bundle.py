"""Generates the few Python files that travel with a checkpoint from the many that this folder holds.

In the source, one file holds one thing. Into a checkpoint go at most six files under Hugging Face's usual names:
``configuration_``, ``modeling_`` and ``processing_mcompose.py``, and the same three ``_points.py``. Each takes what its
root files import, directly or not, and what no earlier file holds; the first of each three also takes what the other
two both need, so that a processor never imports a network. A generated file has the imports of all its sources at the
top, then one section per source file, behind what it needs, with the text of the source unchanged.

One namespace replaces many, so a name must mean one thing in a generated file. What would not keep its meaning is
refused here, when the files are made: two sources that give one name two meanings, a name of Python's own, sources
that import each other in a circle, and imports that cannot be merged by moving whole lines.

This file and ``registration.py`` stay in the package.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import symtable
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mcompose import __version__

__all__ = ["bundle_sources", "generate_files", "write_files"]

_POINTS = {
    "configuration_points": ["points.configuration"],
    "modeling_points": ["points.network"],
    "processing_points": ["points.processing"],
}
_COMPOSED = {
    "configuration_mcompose": ["configuration.composed", "own_code"],
    "modeling_mcompose": ["network.composed"],
    "processing_mcompose": ["processing.composed"],
}
# Kind of checkpoint -> its groups of files: file -> the sources that it is made for.
_KINDS = {
    "composed": [_POINTS, _COMPOSED],
    "points": [_POINTS],
    "frames": [{"processing_frames": ["processing.frames"]}],
}
_WIDTH = 120
# The one statement that sections may repeat: in one file it makes one logger.
_LOGGER = "logger = logging.get_logger(__name__)"
# What transformers' loader takes for an import of a neighbour, also inside a docstring.
_SEEN_BY_LOADER = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


@dataclass(frozen=True)
class _Import:
    """One name that a source imports; ``attribute`` is empty for ``import module``."""

    module: str
    attribute: str
    alias: str
    is_island: bool
    for_types: bool

    @property
    def name(self) -> str:
        return self.alias or self.attribute or self.module.partition(".")[0]

    @property
    def written(self) -> tuple[str, str, str]:
        return self.module, self.attribute, self.alias

    @property
    def meaning(self) -> tuple[str, str]:
        if self.attribute or self.alias:
            return self.module, self.attribute
        return self.name, ""


@dataclass(frozen=True)
class _Source:
    """One source file, taken apart."""

    module: str
    pragmas: tuple[str, ...]
    docstring: str
    imports: tuple[_Import, ...]
    public: tuple[str, ...]
    defined: frozenset[str]
    body: str

    @property
    def path(self) -> str:
        return _path(self.module)

    def needs(self) -> list[str]:
        """Returns the source files that this one imports when it is run, in the order of its imports."""
        return list(dict.fromkeys(i.module for i in self.imports if i.is_island and not i.for_types))


def generate_files(kind: str) -> dict[str, str]:
    """Generates the code that a checkpoint carries.

    Args:
        kind: "composed", "points" (the point-cloud model alone) or "frames" (the processor of small clips alone).

    Returns:
        File name -> text; the same at every call.
    """
    return dict(_generated(kind))


@cache
def _generated(kind: str) -> dict[str, str]:
    home = Path(__file__).parent
    texts = {
        ".".join(path.relative_to(home).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(home.rglob("*.py"))
    }
    return bundle_sources(texts, _KINDS[kind])


def write_files(folder: str | Path, kind: str = "composed") -> list[Path]:
    """Writes the code that a checkpoint carries into a folder.

    Args:
        folder: The checkpoint; created when it is not there.
        kind: As :func:`generate_files` takes it.

    Returns:
        The files, sorted by name.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    texts = generate_files(kind)
    for name, text in texts.items():
        (target / name).write_bytes(text.encode("utf-8"))
    return [target / name for name in sorted(texts)]


def bundle_sources(
    texts: Mapping[str, str], groups: Sequence[Mapping[str, Sequence[str]]], *, version: str = __version__
) -> dict[str, str]:
    """Merges source files into a few generated ones.

    Args:
        texts: Dotted name of a source file, seen from the island ("experts.router") -> its text.
        groups: Groups of generated files in the order in which they may import each other. Each maps the name of a
            generated file, without ``.py``, to the sources that it is made for.
        version: Version of mcompose that the files name.

    Returns:
        File name -> text.

    Raises:
        ValueError: A name would change its meaning, sources import each other in a circle, or an import cannot be
            merged. The sentence names the source file and says what to change.
    """
    sources = _Sources(texts)
    homes: dict[str, str] = {}
    files = {}
    for group in groups:
        first, *others = group
        reached = [set(_in_order(sources, group[name])) for name in others]
        shared = set.union(*(a & b for a in reached for b in reached if a is not b)) if len(reached) > 1 else set()
        for name, roots in group.items():
            wanted = [*roots, *sorted(shared)] if name == first else roots
            modules = [module for module in _in_order(sources, wanted) if module not in homes]
            homes |= dict.fromkeys(modules, name)
            files[f"{name}.py"] = _write(name, [sources[module] for module in modules], homes, version)
            _check_text(name, files[f"{name}.py"], files)
    return files


class _Sources:
    """The sources by module, each taken apart when it is first asked for."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.parsed: dict[str, _Source] = {}

    def __getitem__(self, module: str) -> _Source:
        if module not in self.parsed:
            self.parsed[module] = _parse(module, self.texts[module])
            self._check_imports(self.parsed[module])
        return self.parsed[module]

    def _check_imports(self, source: _Source) -> None:
        for wanted in source.imports:
            if not wanted.is_island:
                continue
            if wanted.module not in self.texts or f"{wanted.module}.{wanted.attribute}".lstrip(".") in self.texts:
                raise ValueError(
                    f"{source.path} imports {wanted.attribute!r} from '{wanted.module or '.'}', and generated files "
                    "know no modules or folders of the island. Import the names from the file that defines them."
                )
            if wanted.attribute not in self[wanted.module].defined:
                raise ValueError(
                    f"{source.path} imports {wanted.attribute!r} from {_path(wanted.module)}, which does not define "
                    "it. Import it from the file that does."
                )


def _in_order(sources: _Sources, roots: Iterable[str]) -> list[str]:
    """Returns everything that the roots import, each behind what it needs."""
    done: dict[str, None] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circle = " -> ".join(_path(name) for name in (*path[path.index(module) :], module))
            raise ValueError(f"These files import each other in a circle: {circle}. Move what both need into one file.")
        if module not in done:
            for needed in sources[module].needs():
                visit(needed, (*path, module))
            done[module] = None

    for root in roots:
        visit(root, ())
    return list(done)


def _parse(module: str, text: str) -> _Source:
    """Takes a source file apart."""
    tree = ast.parse(text)
    if not tree.body or ast.get_docstring(tree) is None:
        raise ValueError(f"{_path(module)} has no docstring; its section in a generated file would not explain itself.")
    head, *statements = tree.body
    lines = text.splitlines()
    removed = set(range(1, (head.end_lineno or 0) + 1))
    imports: list[_Import] = []
    public: list[str] = []
    cut: list[ast.stmt] = []
    for node in statements:
        if _is_type_checking(node):
            imports += [entry for inner in node.body for entry in _imports(module, inner, for_types=True)]  # pyright: ignore
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += _imports(module, node, for_types=False)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public += ast.literal_eval(node.value)
        else:
            _check_nested(module, node)
            continue
        cut.append(node)
        removed |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    _check_cuts(module, text, cut, [node for node in statements if node not in cut])
    pragmas = tuple(line for line in lines[: head.lineno - 1] if line.strip())
    if "annotations" not in {entry.attribute for entry in imports if entry.module == "__future__"}:
        raise ValueError(f"{_path(module)} lacks 'from __future__ import annotations', which its generated file has.")
    return _Source(
        module,
        pragmas,
        docstring="\n".join(lines[head.lineno - 1 : head.end_lineno]),
        imports=tuple(imports),
        public=tuple(public),
        defined=frozenset(_defined(text, module, tree) - {entry.name for entry in imports}),
        body="\n".join(line for number, line in enumerate(lines, 1) if number not in removed).strip("\n"),
    )


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(module: str, node: ast.stmt, *, for_types: bool) -> Iterator[_Import]:
    """Yields the names that one statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_outside(module, alias.name)
            yield _Import(alias.name, "", alias.asname or "", is_island=False, for_types=for_types)
        return
    if not isinstance(node, ast.ImportFrom):
        raise ValueError(f"{_path(module)}, line {node.lineno}: only imports may stand under 'if TYPE_CHECKING:'.")
    origin = node.module or ""
    if node.level:
        package = module.split(".")[: -node.level]
        if len(package) < len(module.split(".")) - node.level:
            raise ValueError(f"{_path(module)}, line {node.lineno}: this import leaves the island.")
        origin = ".".join([*package, *([node.module] if node.module else [])])
    else:
        _check_outside(module, origin)
    for alias in node.names:
        if alias.name == "*" or (node.level and alias.asname):
            raise ValueError(
                f"{_path(module)}, line {node.lineno}: 'import *' and, between files of the island, 'as' cannot be "
                "merged, because all files share one namespace. Import the names as they are."
            )
        yield _Import(origin, alias.name, alias.asname or "", is_island=node.level > 0, for_types=for_types)


def _check_outside(module: str, origin: str) -> None:
    if origin.partition(".")[0] == "mcompose":
        raise ValueError(
            f"{_path(module)} imports {origin}, which does not travel. Import from the island, relatively."
        )


def _check_nested(module: str, statement: ast.stmt) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(
                f"{_path(module)}, line {node.lineno}: a file of the island is imported inside a function or block. "
                "Import it at the top."
            )
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
                _check_outside(module, name)


def _check_cuts(module: str, text: str, cut: Sequence[ast.stmt], kept: Sequence[ast.stmt]) -> None:
    """Refuses lines whose removal would lose something."""
    removed = {line for node in cut for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lost = [node.lineno for node in kept if node.lineno in removed]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.start[0] in removed:
            lost.append(token.start[0])
    if lost:
        raise ValueError(
            f"{_path(module)}, line {lost[0]}: a statement or comment beside an import would be lost with the line. "
            "Put it on a line of its own."
        )


def _defined(text: str, module: str, tree: ast.Module) -> set[str]:
    """Returns the names that a source gives a value at its top level, or by ``global``."""
    table = symtable.symtable(text, module, "exec")
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_namespace()}
    found |= {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    return found - {"__all__"}


def _write(name: str, sources: Sequence[_Source], homes: Mapping[str, str], version: str) -> str:
    """Returns the text of one generated file."""
    _check_names(name, sources)
    pragmas = sorted({pragma for source in sources for pragma in source.pragmas})
    public = sorted((public for source in sources for public in source.public), key=_kind_then_name)
    parts = [*pragmas, _title(name, sources, version), "", "from __future__ import annotations", ""]
    parts += [*_write_imports(name, sources, homes), "__all__ = [", *(f'    "{own}",' for own in public), "]"]
    for source in sources:
        rule = f"# {'=' * (_WIDTH - 2)}"
        parts += ["", "", rule, f"# {source.path}", rule, source.docstring, "", source.body]
    return "\n".join(parts) + "\n"


def _write_imports(name: str, sources: Sequence[_Source], homes: Mapping[str, str]) -> list[str]:
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
                f"{source.path} names types of {_path(entry.module)}, which goes into a later file than {name}.py. "
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


def _check_names(name: str, sources: Sequence[_Source]) -> None:
    """Refuses names with two meanings, and names that hide Python's own."""
    meanings: dict[str, tuple[object, str]] = {}
    for source in sources:
        here: list[tuple[str, object]] = [
            (entry.name, (_path(entry.module), "") if entry.is_island else entry.meaning) for entry in source.imports
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


def _title(name: str, sources: Sequence[_Source], version: str) -> str:
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


def _check_text(name: str, text: str, files: Mapping[str, str]) -> None:
    for found in _SEEN_BY_LOADER.finditer(text):
        needed = found.group(1) or found.group(2)
        if f"{needed}.py" not in files or needed == name:
            raise ValueError(
                f"A line of {name}.py reads like an import of '.{needed}' to transformers' loader, which would look "
                f"for that file: {found.group(0).strip()!r}. Write the sentence in another way."
            )
    compile(text, f"{name}.py", "exec")


def _path(module: str) -> str:
    return f"{module.replace('.', '/')}.py"
