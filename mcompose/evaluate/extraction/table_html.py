"""Tables in HTML, however badly it is formed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.evaluate.extraction.table import Cell, Table

if TYPE_CHECKING:
    from lxml.html import HtmlElement

__all__ = ["first_table", "read_html", "span_of"]

_CELLS = ("td", "th")


def first_table(text: str) -> HtmlElement | None:
    """Returns the first table element.

    Args:
        text: A document or a piece of one.

    Returns:
        The element; None when there is none.
    """
    from lxml import html  # noqa: PLC0415 - an extra

    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    whole = f"<html><body>{text.replace(chr(0), '')}"  # a document without an element would be an error
    document = html.document_fromstring(whole.encode("utf-8", "replace"), parser=parser)
    return next(document.iter("table"), None)


def read_html(text: str) -> Table | None:
    """Rows of the first table.

    A heading cell is a cell, head, body and foot are no levels of their own, and markup inside a cell is its text. A
    table within a cell is part of the cell's text. Cells outside any row share a row.

    Args:
        text: A document or a piece of one.

    Returns:
        The rows; None when there is no table.
    """
    table = first_table(text)
    if table is None:
        return None
    rows: list[list[Cell]] = []
    row: HtmlElement | None = None
    for element in table.iterdescendants("tr", *_CELLS):
        if next(element.iterancestors("table", *_CELLS)) is not table:
            continue
        home = element if element.tag == "tr" else next(element.iterancestors("tr", "table"))
        if home is not row or not rows:
            rows.append([])
            row = home
        if element.tag in _CELLS:
            rows[-1].append(Cell(_text(element), span_of(element, "colspan"), span_of(element, "rowspan")))
    return tuple(map(tuple, rows))


def span_of(element: HtmlElement, name: str) -> int:
    """Returns how many columns or rows a cell covers.

    Args:
        element: The cell.
        name: "colspan" or "rowspan".

    Returns:
        At least 1, also when the attribute is not a number.
    """
    value = (element.get(name) or "").strip()
    return max(int(value), 1) if value.isascii() and value.isdigit() and len(value) < 5 else 1


def _text(cell: HtmlElement) -> str:
    for line_end in list(cell.iter("br")):
        line_end.tail = " " + (line_end.tail or "")
    return " ".join("".join(cell.itertext()).split())
