"""TEDS: similarity of two tables as trees.

A table is a tree of rows and cells. TEDS = 1 - edits / size of the larger tree. Inserting or deleting a node costs 1;
turning a cell into another costs 1 when their spans differ, else the normalised edit distance of their texts.
TEDS-structure leaves the texts out.

Paper: arXiv 1911.10683 (PubTabNet); the edits by APTED, Pawlik and Augsten 2015.
Differs: Tables may be HTML, LaTeX or Markdown, so what only HTML says does not count: heading cells are cells, head,
body and foot are no levels, markup inside a cell is dropped, and spaces are collapsed. In the published code, texts of
``th`` cells are never compared, and markup counts as characters. ``paper=True`` (metrics ``teds_paper...``) does as
that code does, on HTML, but also takes a table outside ``<html><body>``, which scores 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.evaluate.extraction.table_html import first_table, span_of
from mcompose.evaluate.extraction.table_reading import read_table

if TYPE_CHECKING:
    from lxml.html import HtmlElement

__all__ = ["check_html_table", "check_table", "has_html_table", "has_table", "teds"]

_LEVELS: Final = 200


def teds(output: str, reference: str, *, structure_only: bool = False, paper: bool = False) -> float:
    """Similarity of the first table in each text.

    Args:
        output: What the model wrote.
        reference: The table that it should be.
        structure_only: Leave the cells' texts out.
        paper: Build the trees as the published code does.

    Returns:
        0 to 1; 0 for an output without a table.

    Raises:
        BadReferenceError: The reference holds no table.
    """
    read = _published_tree if paper else _tree
    wanted = read(reference, texts=not structure_only)
    if wanted is None:
        raise BadReferenceError("The reference holds no table in HTML, LaTeX or Markdown.")
    given = read(output, texts=not structure_only)
    if given is None:
        return 0.0
    if given == wanted:
        return 1.0
    from apted import APTED  # noqa: PLC0415 - an extra

    edits = APTED(given, wanted, _Costs()).compute_edit_distance()
    return max(0.0, 1.0 - edits / max(given.size, wanted.size))


def has_table(output: str) -> bool:
    """Returns whether an output holds a table.

    Args:
        output: What the model wrote.

    Returns:
        True when it does.
    """
    return read_table(output) is not None


def has_html_table(output: str) -> bool:
    """Returns whether an output holds a table in HTML.

    Args:
        output: What the model wrote.

    Returns:
        True when it does.
    """
    return first_table(output) is not None


def check_table(reference: str) -> None:
    """Refuses a reference without a table.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It holds none.
    """
    if not has_table(reference):
        raise BadReferenceError("The reference holds no table in HTML, LaTeX or Markdown.")


def check_html_table(reference: str) -> None:
    """Refuses a reference without a table in HTML.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It holds none.
    """
    if not has_html_table(reference):
        raise BadReferenceError("The reference holds no table in HTML, which this metric reads alone.")


@dataclass(frozen=True)
class _Node:
    """A node of a table's tree: its kind, a cell's spans and text, and what is below it."""

    kind: str
    spans: tuple[int, int] = (1, 1)
    text: Sequence[str] = ""
    children: tuple[_Node, ...] = ()
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1 + sum(child.size for child in self.children))


class _Costs:
    """What APTED asks of a configuration."""

    valuecls = float

    def __init__(self) -> None:
        from rapidfuzz.distance import Levenshtein  # noqa: PLC0415 - an extra

        self._apart = Levenshtein.normalized_distance

    def delete(self, _: _Node) -> float:
        return 1.0

    def insert(self, _: _Node) -> float:
        return 1.0

    def rename(self, left: _Node, right: _Node) -> float:
        if left.kind != right.kind or left.spans != right.spans:
            return 1.0
        return self._apart(left.text, right.text) if left.text or right.text else 0.0

    def children(self, node: _Node) -> tuple[_Node, ...]:
        return node.children


def _tree(text: str, *, texts: bool) -> _Node | None:
    table = read_table(text)
    if table is None:
        return None
    rows = (
        tuple(_Node("cell", (cell.colspan, cell.rowspan), cell.text if texts else "") for cell in row) for row in table
    )
    return _Node("table", children=tuple(_Node("row", children=row) for row in rows))


def _published_tree(text: str, *, texts: bool) -> _Node | None:
    table = first_table(text)
    return None if table is None else _published_node(table, texts=texts, level=0)


def _published_node(element: HtmlElement, *, texts: bool, level: int) -> _Node:
    if element.tag == "td":
        spans = span_of(element, "colspan"), span_of(element, "rowspan")
        return _Node("td", spans, tuple(_inside(element, level)) if texts else ())
    below = element if level < _LEVELS else ()
    return _Node(element.tag, children=tuple(_published_node(e, texts=texts, level=level + 1) for e in below))


def _inside(element: HtmlElement, level: int) -> list[str]:
    """Characters and tags, in order; what hangs deeper than a table reasonably does is cut off."""
    made = list(element.text or "")
    for child in element if level < _LEVELS else ():
        made += [f"<{child.tag}>", *_inside(child, level + 1), f"</{child.tag}>"]
        made += "" if child.tag == "td" else (child.tail or "")
    return made
