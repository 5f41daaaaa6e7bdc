"""A table as rows of cells."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cell", "Table"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: What stands in it, spaces collapsed.
        colspan: Columns that it covers.
        rowspan: Rows that it covers.
    """

    text: str
    colspan: int = 1
    rowspan: int = 1


Table = tuple[tuple[Cell, ...], ...]
"""Rows of cells; what a cell of an earlier row covers is not there again."""
