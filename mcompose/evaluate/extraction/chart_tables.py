r"""The data table of a chart, as text, and its facts: (two names, a value).

A table is read from whatever models and data sets write: tabs or literal ``\t`` between cells, new lines or literal
``\n`` or ``<0x0A>`` between rows, pipes with or without Markdown's rule, or CSV. A title line at the top is not a row.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Final

from mcompose.evaluate.extraction.relaxed import number_in

__all__ = ["Fact", "facts_of", "read_grid"]

_RULE: Final = re.compile(r"[\s|:-]*-[\s|:-]*")
_DECORATION: Final = str.maketrans("", "", "%$")


@dataclass(frozen=True)
class Fact:
    """One value of a chart.

    Args:
        names: Its row's and its column's name, lower-cased and sorted, so that a transposed table says the same.
        word: The value as lower-cased text, without percent and dollar signs.
        number: The value, when it is a number.
    """

    names: tuple[str, str]
    word: str
    number: float | None


def read_grid(text: str) -> list[list[str]]:
    """Cells of a table that is written as text.

    Args:
        text: The table.

    Returns:
        Rows of stripped cells, the header first; empty when there are not two rows.
    """
    text = re.sub(r"^\s*```\w*\s*|\s*```\s*$", "", text).replace("<0x0A>", "\n")
    if "\n" not in text.strip():
        text = text.replace("\\n", "\n")
    if "\t" not in text:
        text = text.replace("\\t", "\t")
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [[cell.strip() for cell in row] for row in _split(lines)]
    if len(rows) > 1 and _is_title(rows[0], rows[1]):
        rows = rows[1:]
    return rows if len(rows) > 1 else []


def facts_of(text: str) -> tuple[Fact, ...]:
    """Returns what a table says.

    Args:
        text: The table; its first row and its first column are names.

    Returns:
        One fact per cell under a name, each once; cells beyond the header are none.
    """
    grid = read_grid(text)
    found: dict[Fact, None] = {}
    for row in grid[1:]:
        for name, cell in zip(grid[0][1:], row[1:], strict=False):
            first, second = sorted((row[0].lower(), name.lower()))
            word = cell.translate(_DECORATION).strip().lower()
            number = number_in(word)
            found[Fact((first, second), "" if number is not None else word, number)] = None
    return tuple(found)


def _split(lines: list[str]) -> list[list[str]]:
    if any("\t" in line for line in lines):
        return [line.split("\t") for line in lines]
    if any("|" in line for line in lines):
        inner = [line.strip() for line in lines if not _RULE.fullmatch(line)]
        return [re.split(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|")) for line in inner]
    try:
        return list(csv.reader(lines, skipinitialspace=True))
    except csv.Error:
        return []


def _is_title(first: list[str], second: list[str]) -> bool:
    """Returns a line of one cell over rows of several, or DePlot's ``TITLE | ...``."""
    return len(first) == 1 < len(second) or (len(first) == len(("TITLE", "name")) and first[0] == "TITLE")
