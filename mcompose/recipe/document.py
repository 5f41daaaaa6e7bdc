"""Reads a YAML file into plain values, with the line of every key.

PyYAML's ``compose`` keeps the line of every node and ``safe_load`` does not, so the node tree is turned into values
here. Three things differ from ``safe_load``: a repeated key is an error, ``1e-5`` is a number (as in YAML 1.2; YAML 1.1
reads text), and only plain values are accepted (no dates, sets or bytes). Anchors and merge keys work, up to a limit
that stops a small file from expanding into a huge one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mcompose.errors import RecipeError

__all__ = ["FLOAT_PATTERN", "MAX_BYTES", "MAX_VALUES", "Document", "KeyPath", "parse_document", "read_text", "spell"]

MAX_BYTES = 512 * 1024
"""Largest recipe file; a composition of a hundred sources, layer by layer, takes a tenth of this."""
MAX_VALUES = 100_000
"""Most values of a file after its anchors are expanded."""
FLOAT_PATTERN = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+")
"""Numbers with an exponent that YAML 1.1 reads as text."""

KeyPath: TypeAlias = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_AS_TEXT = (_TAG + "str", _TAG + "timestamp", _TAG + "value")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCALARS = tuple(_TAG + kind for kind in ("null", "bool", "int", "float"))


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` that reads ``1e-5`` as a number."""


_Loader.add_implicit_resolver(_TAG + "float", re.compile(rf"^(?:{FLOAT_PATTERN.pattern})$"), list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """The content of a recipe file.

    Args:
        file: Path as the user wrote it.
        data: Content: mappings as dicts, sequences as lists.
        lines: Key path to the line of the key or item, from 1.
    """

    file: str
    data: dict[Any, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])

    def line(self, at: KeyPath) -> int:
        """Returns the line of a key path or of its nearest enclosing key in the file; 0 for the whole file."""
        for length in range(len(at), 0, -1):
            if at[:length] in self.lines:
                return self.lines[at[:length]]
        return 0

    def error(self, message: str, *, at: KeyPath = (), hint: str = "") -> RecipeError:
        """Returns an error that names the file and the line of a key path."""
        return RecipeError(message, file=self.file, line=self.line(at), hint=hint)


def spell(at: KeyPath) -> str:
    """Formats a key path for messages: ``sources[0].model``."""
    text = ""
    for key in at:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def read_text(path: Path) -> tuple[bytes, str]:
    """Reads a recipe file.

    Args:
        path: The file.

    Returns:
        The bytes of the file, and its text.

    Raises:
        RecipeError: The file does not exist, or cannot be a recipe.
    """
    file = str(path)
    if path.is_dir():
        raise RecipeError("this is a folder, not a recipe.", file=file, hint=_name_a_recipe(path))
    if not path.exists():
        raise RecipeError("the file does not exist.", file=file, hint="Name a recipe: a YAML file.")
    if not path.is_file():
        raise RecipeError("this is not an ordinary file.", file=file, hint="Name a recipe: a YAML file.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RecipeError(
            f"the file has {size:,} bytes; a recipe may have at most {MAX_BYTES:,}.",
            file=file,
            hint="Check that this is a recipe: a recipe names checkpoints, it does not contain them.",
        )
    raw = path.read_bytes()
    try:
        return raw, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"byte {error.start} is not UTF-8 text.",
            file=file,
            line=raw.count(b"\n", 0, error.start) + 1,
            hint="A recipe is a YAML text file, saved as UTF-8.",
        ) from None


def parse_document(text: str, *, file: str, kind: str = "recipe") -> Document:
    """Parses YAML text into values with lines.

    Args:
        text: The text.
        file: Path for messages.
        kind: What the file is, for messages.

    Returns:
        The document; its top level is a mapping.

    Raises:
        RecipeError: The text is not YAML, not a mapping, repeats a key, or expands to too many values.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file=file) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"character U+{ord(text[error.position]):04X} is not allowed in YAML.",
            file=file,
            line=line,
            hint="Remove it: a recipe is a YAML text file.",
        ) from None
    except RecursionError:
        raise RecipeError("the brackets are nested too deeply.", file=file) from None
    hint = "Begin with 'schema: 1'." if kind == "recipe" else ""
    if node is None:
        raise RecipeError(f"the {kind} is empty.", file=file, hint=hint)
    if not isinstance(node, MappingNode):
        line = node.start_mark.line + 1
        raise RecipeError(f"a {kind} must be a mapping of keys to values.", file=file, line=line, hint=hint)
    builder = _Builder(file)
    try:
        data = builder.build(node, at=())
    except RecursionError:
        raise RecipeError("the brackets are nested too deeply.", file=file) from None
    return Document(file, data, builder.lines)


def _name_a_recipe(folder: Path) -> str:
    inside = sorted(entry.name for entry in folder.iterdir() if entry.suffix in {".yaml", ".yml"})
    return f"Name a file in it: {', '.join(inside[:5])}." if inside else "Name a recipe: a YAML file."


def _syntax_error(error: yaml.MarkedYAMLError, *, file: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    if "single document" in f"{error.context}":
        hint = "Put each recipe into its own file; '---' starts another document."
        return RecipeError("the file contains several YAML documents.", file=file, line=line, hint=hint)
    problem = error.problem or "the text cannot be parsed"
    context = f" {error.context}" if error.context else ""
    is_tab = r"'\t'" in problem
    hint = "Indent with spaces; YAML does not allow tabs." if is_tab else "Check the indentation and quotes."
    return RecipeError(f"not valid YAML{context}: {problem}.", file=file, line=line, hint=hint)


class _Builder:
    """Builds the values of a node tree and records their lines."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self._count = 0
        self._open: list[Node] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def build(self, node: Node, *, at: KeyPath) -> Any:
        self._count_node(node, at=at)
        if isinstance(node, ScalarNode):
            return self._scalar(node, at=at)
        self._open.append(node)
        value = self._mapping(node, at=at) if isinstance(node, MappingNode) else self._sequence(node, at=at)
        self._open.pop()
        return value

    def _count_node(self, node: Node, *, at: KeyPath) -> None:
        """Counts a node, and refuses one that contains itself."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(f"the anchors expand to more than {MAX_VALUES:,} values.", node)
        if any(node is outer for outer in self._open):
            raise self._error(f"the anchor at '{spell(at)}' contains itself.", node)

    def _sequence(self, node: Node, *, at: KeyPath) -> list[Any]:
        if not isinstance(node, SequenceNode) or node.tag != _TAG + "seq":
            raise self._error(f"'{spell(at)}' has the tag '{node.tag}'.", node, hint="Remove it.")
        for index, item in enumerate(node.value):
            self.lines[*at, index] = item.start_mark.line + 1
        return [self.build(item, at=(*at, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: MappingNode, *, at: KeyPath) -> dict[Any, Any]:
        if node.tag != _TAG + "map":
            raise self._error(f"'{spell(at)}' has the tag '{node.tag}'.", node, hint="Remove it.")
        values: dict[Any, Any] = {}
        for key_node, value_node in self._entries(node, at=at):
            key = self._key(key_node, at=at)
            if key not in values:
                self.lines[*at, key] = key_node.start_mark.line + 1
                values[key] = self.build(value_node, at=(*at, key))
        return values

    def _entries(self, node: MappingNode, *, at: KeyPath) -> Iterator[tuple[Node, Node]]:
        """Yields a mapping's own entries, then those of its ``<<`` keys, which the own entries override."""
        first_lines: dict[Any, int] = {}
        merged: list[MappingNode] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += self._merged(value_node, at=at)
                continue
            key = self._key(key_node, at=at)
            line = key_node.start_mark.line + 1
            if key in first_lines:
                path = spell((*at, key))
                raise self._error(f"'{path}' is set twice; the first is on line {first_lines[key]}.", key_node)
            first_lines[key] = line
            yield key_node, value_node
        for other in merged:
            self._count_node(other, at=at)
            self._open.append(other)
            yield from self._entries(other, at=at)
            self._open.pop()

    def _merged(self, node: Node, *, at: KeyPath) -> list[MappingNode]:
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        mappings = [item for item in nodes if isinstance(item, MappingNode)]
        if len(mappings) != len(nodes):
            raise self._error(f"'<<' in '{spell(at)}' does not name a mapping.", node)
        return mappings

    def _key(self, node: Node, *, at: KeyPath) -> str | int:
        key = self._scalar(node, at=at) if isinstance(node, ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, str | int):
            where = f" in '{spell(at)}'" if at else ""
            raise self._error(f"a key{where} is not text or a whole number.", node, hint="Put the key in quotes.")
        return key

    def _scalar(self, node: ScalarNode, *, at: KeyPath) -> Any:
        if half := _SURROGATE.search(node.value):  # an escape can spell it; no file can hold it, no path name it
            where = f" in '{spell(at)}'" if at else ""
            message = f"U+{ord(half[0]):04X}{where} is only half of a character."
            raise self._error(message, node, hint=r"Write the character itself, or one escape: '\U0001F600'.")
        if node.tag in _AS_TEXT:
            return node.value
        if node.tag not in _SCALARS:
            raise self._error(f"'{spell(at)}' has the tag '{node.tag}'.", node, hint="Remove it.")
        try:
            return self._constructor.construct_object(node)  # pyright: ignore[reportUnknownMemberType]
        except (ValueError, KeyError):
            raise self._error(f"'{spell(at)}' is not a valid value: {node.value[:40]}.", node) from None

    def _error(self, message: str, node: Node, *, hint: str = "") -> RecipeError:
        return RecipeError(message, file=self.file, line=node.start_mark.line + 1, hint=hint)
