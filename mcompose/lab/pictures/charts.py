"""Bar, line and pie charts of a few named numbers.

Bar and line charts have an axis from 0 to a maximum that differs between charts, with numbers at its ends: a height
says nothing until they are read. Most charts also show each value as text: above the plot, under the tip, or in the
legend.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mcompose.lab.pictures.ink import CELL, Sheet, blank, draw_style
from mcompose.lab.pictures.picture import Box, Mark, Picture
from mcompose.lab.pictures.sources import Source, draw_figures

__all__ = ["CHART_CELLS", "TOP_VALUE", "render_bar", "render_line", "render_pie"]

CHART_CELLS: Final = {3: (7, 8), 4: (9, 7), 5: (11, 6)}
"""Number of values of a chart with an axis -> its columns and rows of cells."""
TOP_VALUE: Final = 20
_TOPS: Final = (5, 10, 15, 20)
_WRITTEN: Final = 0.85
_PIE_CELLS: Final = (9, 7)
_PIE_STEP: Final = 5


def render_bar(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a bar chart.

    Args:
        generator: Source of randomness for numbers and style.
        source: Source of the numbers.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"names", "values"}`` from left to right, values 0 to 20.
    """
    return _with_axes("bar", generator, source, split)


def render_line(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a line chart.

    Args:
        generator: Source of randomness for numbers and style.
        source: Source of the numbers.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"names", "values"}`` from left to right, values 0 to 20.
    """
    return _with_axes("line", generator, source, split)


def render_pie(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws a pie chart with a legend.

    Args:
        generator: Source of randomness for numbers and style.
        source: Source of the numbers.
        split: "train" or "test": the records that it may show.

    Returns:
        The picture; its ``truth`` is ``{"names", "values"}`` clockwise from the top, in percent, multiples of 5.
    """
    names, numbers = _named_numbers(generator, source, split, most=4)
    values = _shares(numbers)
    style = draw_style(generator)
    sheet = blank(_PIE_CELLS[0] * CELL, _PIE_CELLS[1] * CELL, style)
    radius = int(generator.integers(22, 29))
    centre = (int(generator.integers(radius, 59 - radius)), int(generator.integers(radius + 1, 82 - radius)))
    round_box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    written = bool(generator.random() < _WRITTEN)
    first, step = (0, 1) if generator.random() < 0.5 else (1, 1)
    if len(names) == 3 and generator.random() < 0.5:
        step = 2
    marks: list[Mark] = []
    begin = 0
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        sheet.pen.pieslice(round_box, 3.6 * begin - 90, 3.6 * (begin + value) - 90, fill=style.palette[place])
        row = first + step * place
        x, y = 5 * CELL, row * CELL
        sheet.pen.rectangle((x + 3, y + 2, x + CELL - 3, y + CELL - 3), fill=style.palette[place])
        seen = sheet.write(str(value), (8, row)) if written else (x, y, x + CELL, y + CELL)
        marks += _marks(sheet.write(name, (6, row)), seen, name, value)
        begin += value
    truth = {"names": list(names), "values": list(values)}
    shapes = {"centre": list(centre), "radius": radius, "colours": [list(c) for c in style.palette[: len(names)]]}
    return Picture(sheet.image, "pie", truth, tuple(marks), shapes)


def _with_axes(kind: str, generator: np.random.Generator, source: Source, split: str) -> Picture:
    names, values = _named_numbers(generator, source, split, most=5)
    style = draw_style(generator)
    columns, rows = CHART_CELLS[len(names)]
    sheet = blank(columns * CELL, rows * CELL, style)
    plot = (CELL, CELL + int(generator.integers(0, 7)), columns * CELL - 1, (rows - 1) * CELL)
    tops = [top for top in _TOPS if top >= max(values)]
    top = tops[int(generator.integers(min(2, len(tops))))]
    _axes(sheet, plot, top, grid=bool(generator.random() < 0.6))
    tips = [(CELL * (2 + 2 * i), plot[3] - round((plot[3] - plot[1]) * value / top)) for i, value in enumerate(values)]
    half = int(generator.integers(5, 10))
    shapes = _bars(sheet, plot, tips, half=half) if kind == "bar" else _line(sheet, tips)
    place = ("above" if generator.random() < 0.6 else "tip") if generator.random() < _WRITTEN else ""
    marks: list[Mark] = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        said = sheet.write(name, (1 + 2 * i, rows - 1))
        row = 0 if place == "above" else _row_above(tips[i][1])
        seen = sheet.write(str(value), (1 + 2 * i, row)) if place else (said[0], CELL * row, said[2], CELL * (row + 2))
        marks += _marks(said, seen, name, value)
    truth = {"names": list(names), "values": list(values)}
    return Picture(sheet.image, kind, truth, tuple(marks), shapes | {"plot": list(plot), "top": top})


def _row_above(tip: int) -> int:
    """Returns the lowest row of cells that ends above a tip."""
    return max(0, tip // CELL - 1)


def _axes(sheet: Sheet, plot: Box, top: int, *, grid: bool) -> None:
    left, up, right, down = plot
    for tick in range(0, top + 1, 5):
        y = down - round((down - up) * tick / top)
        if grid and tick:
            sheet.pen.line((left, y, right, y), fill=sheet.style.grid)
    sheet.write(str(top), (0, 1))
    sheet.write("0", (0, down // CELL - 1))
    sheet.pen.line((left, up, left, down), fill=sheet.style.ink)
    sheet.pen.line((left, down, right, down), fill=sheet.style.ink)


def _bars(sheet: Sheet, plot: Box, tips: list[tuple[int, int]], *, half: int) -> dict[str, Any]:
    boxes = [[x - half, y, x + half, plot[3]] for x, y in tips]
    for box in boxes:
        if box[1] < box[3]:
            sheet.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=sheet.style.palette[0])
    return {"bars": boxes, "colours": [list(sheet.style.palette[0])]}


def _line(sheet: Sheet, tips: list[tuple[int, int]]) -> dict[str, Any]:
    colour = sheet.style.palette[0]
    sheet.pen.line(tips, fill=colour, width=1)
    for x, y in tips:
        sheet.pen.rectangle((x - 1, y - 1, x + 1, y + 1), fill=colour)
    return {"points": [list(tip) for tip in tips], "colours": [list(colour)]}


def _named_numbers(
    generator: np.random.Generator, source: Source, split: str, *, most: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    count = int(generator.integers(3, most + 1))
    if generator.random() < 0.7 or len(source.columns) < 3:
        drawn = draw_figures(source, rows=count, columns=1, split=split, generator=generator)
        names, values = drawn.rows, [row[0] for row in drawn.values]
    else:
        drawn = draw_figures(source, rows=1, columns=count, split=split, generator=generator)
        names, values = drawn.columns, list(drawn.values[0])
    # A chart's unit is the smallest of 1, 2 and 5 that keeps all values at most 20.
    unit = next(u for u in (1, 2, 5) if max(values) <= u * TOP_VALUE)
    order = generator.permutation(len(names)) if generator.random() < 0.5 else np.arange(len(names))
    return tuple(names[i] for i in order), tuple(round(values[i] / unit) for i in order)


def _shares(values: tuple[int, ...]) -> tuple[int, ...]:
    """Rounds values to percentages in steps of 5 that add up to 100, none below 10."""
    steps, least = 100 // _PIE_STEP, 2
    weights = np.array(values, dtype=float) + 1
    free = (steps - least * len(values)) * weights / weights.sum()
    whole = np.floor(free).astype(int)
    for place in np.argsort(whole - free, kind="stable")[: steps - least * len(values) - int(whole.sum())]:
        whole[place] += 1
    return tuple(int(_PIE_STEP * (least + share)) for share in whole)


def _marks(said: Box, seen: Box, name: str, value: int) -> list[Mark]:
    number = {"tens": str(value // 10), "units": str(value % 10)}
    return [Mark(said, {"name": name}), Mark(seen, {"name": name} | number)]
