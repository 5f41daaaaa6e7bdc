"""The views of a picture: one of the whole, and sub-images in rows and columns. Pure arithmetic on sizes.

A picture is placed on a canvas of ``columns`` to ``rows``, filled up with one colour, in the centre or from the upper
left corner. The canvas is cut into tiles of equal size, which follow row by row. A tile that shows nothing but filling
is empty. The overview is the picture on a canvas of one tile.

Paper: Lin et al. 2023, arXiv 2311.07575 (overview and 2 x 2 or 3 x 3 sub-images of the padded square); Liu et al. 2024,
arXiv 2402.05935, section 3.2 (one learned vector for a sub-image that is padding alone).
Differs: grids of any size; a grid that is not square pads to its own proportions; filling may begin in a corner, since
centred filling never leaves a 2 x 2 grid with an empty tile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Canvas", "PictureViews", "largest_grid", "read_grid", "view_layout"]

_GRID = re.compile(r"([1-9][0-9]?)x([1-9][0-9]?)")


@dataclass(frozen=True)
class Canvas:
    """A picture on a canvas, in pixels of the picture.

    Args:
        width: Width of the canvas.
        height: Height of the canvas.
        left: Where the picture begins, from the left.
        top: Where the picture begins, from above.
    """

    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True)
class PictureViews:
    """The views of one picture.

    Args:
        rows: Rows of tiles.
        columns: Columns of tiles; 1 x 1 means that the overview is the only view.
        shown: For each view in order, its tile as (row, column), "overview", or None for an empty tile.
    """

    rows: int
    columns: int
    shown: tuple[tuple[int, int] | str | None, ...]


def read_grid(text: str) -> tuple[int, int] | None:
    """Returns the rows and columns that a word such as "2x3" names, None for any other word."""
    found = _GRID.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def largest_grid(views: Mapping[str, Any]) -> int:
    """Returns the most tiles that a picture can be cut into.

    Args:
        views: ``views`` of the configuration.
    """
    if views["tiles"] == "auto":
        return int(views["max_tiles"])
    return math.prod(read_grid(views["tiles"]) or (1, 1))


def view_layout(width: int, height: int, views: Mapping[str, Any]) -> PictureViews:
    """Decides the views of a picture.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        views: ``views`` of the configuration: ``size``, ``tiles``, ``max_tiles``, ``padding``, ``align``, ``overview``
            and ``skip``.
    """
    if views["tiles"] == "auto":
        rows, columns = _closest_grid(width, height, side=views["size"], most=views["max_tiles"])
    else:
        rows, columns = read_grid(views["tiles"]) or (1, 1)
    if rows * columns == 1:
        return PictureViews(1, 1, ("overview",))
    canvas = fitted_canvas(width, height, rows=rows, columns=columns, views=views)
    tiles: list[tuple[int, int] | str | None] = []
    for row in range(rows):
        for column in range(columns):
            empty = views["skip"] and _is_empty(canvas, width, height, rows, columns, row, column)
            tiles.append(None if empty else (row, column))
    whole: list[tuple[int, int] | str | None] = ["overview"]
    order = {"first": whole + tiles, "last": tiles + whole, "none": tiles}
    return PictureViews(rows, columns, tuple(order[views["overview"]]))


def fitted_canvas(width: int, height: int, *, rows: int, columns: int, views: Mapping[str, Any]) -> Canvas:
    """Returns the smallest canvas of ``columns`` to ``rows`` that holds a picture.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        rows: Rows of tiles.
        columns: Columns of tiles.
        views: ``padding``: "square", or "none" where the picture is stretched; ``align``: "center" or "corner".
    """
    if views["padding"] == "none":
        return Canvas(width, height, 0, 0)
    if width * rows >= height * columns:
        across, down = width, max(height, round(width * rows / columns))
    else:
        across, down = max(width, round(height * columns / rows)), height
    if views["align"] == "corner":
        return Canvas(across, down, 0, 0)
    return Canvas(across, down, (across - width) // 2, (down - height) // 2)


def _closest_grid(width: int, height: int, *, side: int, most: int) -> tuple[int, int]:
    """Returns the grid with the picture's proportions; of several, a larger one if the picture fills half of it."""
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    best, nearest = (1, 1), math.inf
    for rows, columns in sorted(grids, key=lambda grid: (math.prod(grid), grid)):
        distance = abs(math.log(columns * height / (rows * width)))
        fills = 2 * width * height > side * side * rows * columns
        if distance < nearest - 1e-12 or (distance < nearest + 1e-12 and fills):
            best, nearest = (rows, columns), distance
    return best


def _is_empty(canvas: Canvas, width: int, height: int, rows: int, columns: int, row: int, column: int) -> bool:
    """Whether a tile shows no pixel of the picture; in whole numbers, so that no rounding decides it."""
    beside = (column + 1) * canvas.width <= canvas.left * columns
    beside = beside or column * canvas.width >= (canvas.left + width) * columns
    above = (row + 1) * canvas.height <= canvas.top * rows
    return beside or above or row * canvas.height >= (canvas.top + height) * rows
