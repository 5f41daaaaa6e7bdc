"""Takes a source file of the island apart into what a generated file moves: imports, docstring, names and body."""

from __future__ import annotations

import ast
import io
import symtable
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Import", "Source", "parse_source", "path_of"]


@dataclass(frozen=True)
class Import:
    """One name that a source imports.

    Args:
        module: Where it comes from; for a file of the island its dotted name seen from there.
        attribute: The name in that module; empty for ``import module``.
        alias: The name after ``as``, or empty.
        is_island: Whether the module is a file of the island.
        for_types: Whether the import stands under ``if TYPE_CHECKING:``.
    """

    module: str
    attribute: str
    alias: str
    is_island: bool
    for_types: bool

    @property
    def name(self) -> str:
        """The name that the import binds."""
        return self.alias or self.attribute or self.module.partition(".")[0]

    @property
    def written(self) -> tuple[str, str, str]:
        """What the merged statement is written from: module, attribute and alias."""
        return self.module, self.attribute, self.alias

    @property
    def meaning(self) -> tuple[str, str]:
        """What the name stands for: a module, or an attribute of one."""
        if self.attribute or self.alias:
            return self.module, self.attribute
        return self.name, ""


@dataclass(frozen=True)
class Source:
    """One source file, taken apart.

    Args:
        module: Its dotted name, seen from the island ("experts.router").
        pragmas: Comments above the docstring, for the type checker and the linter.
        docstring: The literal, with its quotes.
        imports: The names that it imports at its top level.
        public: The names in its ``__all__``.
        defined: The names that it defines at its top level.
        body: Its text without all of these.
    """

    module: str
    pragmas: tuple[str, ...]
    docstring: str
    imports: tuple[Import, ...]
    public: tuple[str, ...]
    defined: frozenset[str]
    body: str

    @property
    def path(self) -> str:
        """The file, seen from the island."""
        return path_of(self.module)

    def needs(self) -> list[str]:
        """Returns the source files that this one imports when it is run, in the order of its imports."""
        return list(dict.fromkeys(i.module for i in self.imports if i.is_island and not i.for_types))


def parse_source(module: str, text: str) -> Source:
    """Takes a source file apart.

    Args:
        module: Its dotted name, seen from the island.
        text: What it holds.

    Raises:
        ValueError: It holds something that a generated file could not keep.
    """
    tree = ast.parse(text)
    if not tree.body or ast.get_docstring(tree) is None:
        raise ValueError(
            f"{path_of(module)} has no docstring; its section in a generated file would not explain itself."
        )
    head, *statements = tree.body
    lines = text.split("\n")  # as the parser counts them
    removed = set(range(1, (head.end_lineno or 0) + 1))
    imports: list[Import] = []
    public: list[str] = []
    cut: list[ast.stmt] = []
    for node in statements:
        if isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "TYPE_CHECKING":
            imports += [entry for inner in node.body for entry in _imports(module, inner, for_types=True)]
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
    if other := [line for line in pragmas if not line.startswith(("# pyright:", "# ruff:"))]:
        raise ValueError(
            f"{path_of(module)} has {other[0]!r} above its docstring. Put it below, or into the docstring."
        )
    if "annotations" not in {entry.attribute for entry in imports if entry.module == "__future__"}:
        raise ValueError(f"{path_of(module)} lacks 'from __future__ import annotations', which its generated file has.")
    return Source(
        module,
        pragmas,
        docstring="\n".join(lines[head.lineno - 1 : head.end_lineno]),
        imports=tuple(imports),
        public=tuple(public),
        defined=frozenset(_defined(text, module, tree) - {entry.name for entry in imports}),
        body="\n".join(line for number, line in enumerate(lines, 1) if number not in removed).strip("\n"),
    )


def _imports(module: str, node: ast.stmt, *, for_types: bool) -> Iterator[Import]:
    """Yields the names that one statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            _check_outside(module, alias.name)
            yield Import(alias.name, "", alias.asname or "", is_island=False, for_types=for_types)
        return
    if not isinstance(node, ast.ImportFrom):
        raise ValueError(f"{path_of(module)}, line {node.lineno}: only imports may stand under 'if TYPE_CHECKING:'.")
    origin = node.module or ""
    if node.level:
        package = module.split(".")[: -node.level]
        if node.level > len(module.split(".")):
            raise ValueError(f"{path_of(module)}, line {node.lineno}: this import leaves the island.")
        origin = ".".join([*package, *([node.module] if node.module else [])])
    else:
        _check_outside(module, origin)
    for alias in node.names:
        if alias.name == "*" or (node.level and alias.asname):
            raise ValueError(
                f"{path_of(module)}, line {node.lineno}: 'import *' and, between files of the island, 'as' cannot be "
                "merged, because all files share one namespace. Import the names as they are."
            )
        yield Import(origin, alias.name, alias.asname or "", is_island=node.level > 0, for_types=for_types)


def _check_outside(module: str, origin: str) -> None:
    if origin.partition(".")[0] == "mcompose":
        raise ValueError(
            f"{path_of(module)} imports {origin}, which does not travel. Import from the island, relatively."
        )


def _check_nested(module: str, statement: ast.stmt) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(
                f"{path_of(module)}, line {node.lineno}: a file of the island is imported inside a function or block. "
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
            f"{path_of(module)}, line {lost[0]}: a statement or comment beside an import would be lost with the line. "
            "Put it on a line of its own."
        )


def _defined(text: str, module: str, tree: ast.Module) -> set[str]:
    """Returns the names that a source gives a value at its top level, or by ``global``."""
    table = symtable.symtable(text, module, "exec")
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_namespace()}
    found |= {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    return found - {"__all__"}


def path_of(module: str) -> str:
    """Returns the path of a source file, seen from the island."""
    return f"{module.replace('.', '/')}.py"
