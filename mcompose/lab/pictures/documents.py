"""Pages of text lines, and formulas."""

from __future__ import annotations

from typing import Final

import numpy as np

from mcompose.lab.pictures.ink import CELL, Sheet, blank, draw_style
from mcompose.lab.pictures.picture import Mark, Picture
from mcompose.lab.pictures.sources import Source
from mcompose.lab.pictures.tables import SIDE

__all__ = ["MOST_LINES", "OPERATORS", "ROLES", "render_formula", "render_page"]

MOST_LINES: Final = 5
OPERATORS: Final = ("+", "-", "=")
ROLES: Final = ("plain", "top", "bottom", "power", "root")
"""Roles of a number in a formula."""
_FORMS: Final = ("plain", "fraction", "power", "root")
_CELLS: Final = SIDE // CELL


def render_page(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a page: each line has a measured quantity, its object and the number.

    Args:
        generator: Source of randomness for words and style.
        source: Source of the facts.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"lines": [["high", "Jan", "12"], ...]}``.
    """
    sheet = blank(SIDE, SIDE, draw_style(generator))
    count = int(generator.integers(3, MOST_LINES + 1))
    step = 2 if count < 4 and generator.random() < 0.5 else 1
    left, top = int(generator.integers(0, 3)), int(generator.integers(0, _CELLS - step * (count - 1)))
    if generator.random() < 0.3 and top:
        sheet.pen.line((CELL * left, CELL * top - 2, SIDE - 8, CELL * top - 2), fill=sheet.style.palette[0], width=2)
    gap = int(generator.integers(0, 2)) if left < 2 else 0
    lines, marks = [], []
    for index in range(count):
        row, column = (names[int(generator.integers(len(names)))] for names in (source.rows, source.columns))
        number = source.figure(row, column, split=split, generator=generator)
        words = [column, row, str(number)] if generator.random() < 0.5 else [row, column, str(number)]
        indent = left + int(generator.random() < 0.2)
        for place, (word, x) in enumerate(zip(words, (indent, indent + 2, indent + 4 + gap), strict=True)):
            said = _number(number) if place == 2 else {"word": word}
            box = sheet.write(word, (x, top + step * index))
            marks.append(Mark(box, said | {"line": str(index + 1), "place": str(place + 1)}))
        lines.append(words)
    return Picture(sheet.image, "page", {"lines": lines}, tuple(marks), {"step": step, "top": top})


def render_formula(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a formula of two terms: numbers, fractions, powers and roots.

    Args:
        generator: Source of randomness for form and style.
        source: Source of its numbers.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"terms": [{"form", "numbers"}], "operator"}``.
    """
    sheet = blank(SIDE, SIDE, draw_style(generator))
    terms = [_term(generator, source, split) for _ in range(2)]
    operator = OPERATORS[int(generator.integers(len(OPERATORS)))]
    x, y = int(generator.integers(0, 3)), int(generator.integers(1, _CELLS - 1))
    marks: list[Mark] = []
    x = _draw_term(sheet, terms[0], (x, y), marks=marks, line=1)
    marks.append(Mark(sheet.write(operator, (x, y)), {"word": operator, "line": "2", "place": "plain"}))
    _draw_term(sheet, terms[1], (x + 1, y), marks=marks, line=2)
    truth = {"terms": [{"form": form, "numbers": list(numbers)} for form, numbers in terms], "operator": operator}
    return Picture(sheet.image, "formula", truth, tuple(marks), {"row": y})


def _term(generator: np.random.Generator, source: Source, split: str) -> tuple[str, tuple[int, ...]]:
    form = _FORMS[int(generator.choice(4, p=(0.2, 0.35, 0.25, 0.2)))]
    row, column = (names[int(generator.integers(len(names)))] for names in (source.rows, source.columns))
    number = source.figure(row, column, split=split, generator=generator) or 1
    second = int(generator.integers(2, 10))
    return form, (number, second) if form in {"fraction", "power"} else (number,)


def _draw_term(
    sheet: Sheet, term: tuple[str, tuple[int, ...]], at: tuple[int, int], *, marks: list[Mark], line: int
) -> int:
    (form, numbers), (x, y) = term, at
    placed = {
        "plain": [("plain", (x, y))],
        "fraction": [("top", (x, y - 1)), ("bottom", (x, y + 1))],
        "power": [("plain", (x, y)), ("power", (x + 1, y - 1))],
        "root": [("root", (x + 1, y))],
    }[form]
    for number, (role, cell) in zip(numbers, placed, strict=True):
        marks.append(Mark(sheet.write(str(number), cell), _number(number) | {"line": str(line), "place": role}))
    left, top = CELL * x, CELL * y
    if form == "fraction":
        sheet.pen.line((left, top + 5, left + CELL - 1, top + 5), fill=sheet.style.ink)
    if form == "root":
        path = [(left + 4, top + 6), (left + 6, top + 6), (left + 8, top + 11), (left + 11, top + 1)]
        sheet.pen.line([*path, (left + 2 * CELL - 1, top + 1)], fill=sheet.style.ink)
    return x + (1 if form in {"plain", "fraction"} else 2)


def _number(value: int) -> dict[str, str]:
    return {"tens": str(value // 10), "units": str(value % 10)}
