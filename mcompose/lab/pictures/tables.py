"""Tables of numbers with named rows and columns."""

from __future__ import annotations

from typing import Final

import numpy as np

from mcompose.lab.pictures.ink import CELL, Sheet, Style, blank, draw_style
from mcompose.lab.pictures.picture import Mark, Picture
from mcompose.lab.pictures.sources import Source, draw_figures

__all__ = ["SIDE", "render_table"]

SIDE: Final = 96
_CELLS: Final = SIDE // CELL
_RULES: Final = ("all", "rows", "head", "stripes", "none")


def render_table(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a table.

    Args:
        generator: Source of randomness for numbers and style.
        source: Source of the numbers.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"rows", "columns", "values"}``.
    """
    figures = draw_figures(
        source, rows=int(generator.integers(2, 5)), columns=int(generator.integers(2, 4)), split=split,
        generator=generator,
    )  # fmt: skip
    style = draw_style(generator)
    sheet = blank(SIDE, SIDE, style)
    xs, ys = _grid(len(figures.columns), len(figures.rows), generator)
    rules = _RULES[int(generator.integers(len(_RULES)))]
    _rules(sheet, xs, ys, rules)
    head = style.ink
    if generator.random() < 0.3:
        head = (style.palette[0][0] // 2, style.palette[0][1] // 2, style.palette[0][2] // 2)
    marks = []
    for x, name in zip(xs[1:-1], figures.columns, strict=True):
        marks.append(Mark(sheet.write(name, (x, ys[0]), fill=head), {"column": name}))
    for i, row in enumerate(figures.rows):
        marks.append(Mark(sheet.write(row, (xs[0], ys[i + 1]), fill=head), {"row": row}))
        for j, column in enumerate(figures.columns):
            value = figures.values[i][j]
            fields = {"row": row, "column": column, "tens": str(value // 10), "units": str(value % 10)}
            marks.append(Mark(sheet.write(str(value), (xs[j + 1], ys[i + 1])), fields))
    truth = {"rows": list(figures.rows), "columns": list(figures.columns), "values": [list(v) for v in figures.values]}
    shapes = {"xs": [CELL * x for x in xs], "ys": [CELL * y for y in ys], "rules": rules}
    return Picture(sheet.image, "table", truth, tuple(marks), shapes)


def _grid(columns: int, rows: int, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Returns the borders of columns and rows, in cells; first those of the name column and of the header row."""
    wide = 2 * (columns + 1)
    left = int(generator.integers(0, _CELLS - wide + 1))
    step = 1 if rows == 4 or generator.random() < 0.6 else 2
    top = int(generator.integers(0, _CELLS - step * (rows + 1) + 1))
    return [left + 2 * i for i in range(columns + 2)], [top + step * i for i in range(rows + 2)]


def _rules(sheet: Sheet, xs: list[int], ys: list[int], rules: str) -> None:
    across, down = [min(CELL * x, SIDE - 1) for x in xs], [min(CELL * y, SIDE - 1) for y in ys]
    colour = sheet.style.grid
    if rules == "stripes":
        for top, bottom in zip(down[1::2], down[2::2], strict=False):
            sheet.pen.rectangle((across[0], top, across[-1], bottom - 1), fill=_half(sheet.style))
    if rules in {"all", "rows"}:
        for y in down:
            sheet.pen.line((across[0], y, across[-1], y), fill=colour)
    if rules == "all":
        for x in across:
            sheet.pen.line((x, down[0], x, down[-1]), fill=colour)
    if rules == "head":
        sheet.pen.line((across[0], down[1], across[-1], down[1]), fill=sheet.style.ink)


def _half(style: Style) -> tuple[int, int, int]:
    one, two, three = ((g + 2 * h) // 3 for g, h in zip(style.grid, style.ground, strict=True))
    return one, two, three
