"""Boxes and points of a picture as fractions of its padded square, and as text.

A model that sees a picture filled up to a square reads coordinates of that square: fractions of its side, the longest
edge of the picture, with the filling counted in. They are written with two decimals: ``[0.47, 0.44, 0.49, 0.50]`` for a
box (left, top, right, bottom), ``[0.48, 0.47]`` for a point.

Paper: SPHINX, arXiv 2311.07575, and SPHINX-X, arXiv 2402.05935 (figure 2), as their demonstration code reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mcompose.errors import RequestError

__all__ = ["ALIGNMENTS", "Box", "Numbers", "Point", "Square", "read_numbers", "write_numbers"]

Numbers: TypeAlias = tuple[float, ...]
Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

ALIGNMENTS: Final = ("center", "corner")
"""Where a picture lies in its square: in the middle, or in the upper left corner."""

_BRACKET: Final = re.compile(r"\[([^\[\]]*)\]")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)


@dataclass(frozen=True)
class Square:
    """The square that a picture is filled up to.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        align: Where the picture lies: ``center`` or ``corner``.

    Raises:
        RequestError: The picture has no pixels.
    """

    width: int
    height: int
    align: str = "center"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise RequestError(f"A picture of {self.width} x {self.height} pixels has no place for a box.")

    @property
    def side(self) -> int:
        """Side of the square in pixels: the longest edge of the picture."""
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Pixels of filling left of the picture and above it; whole ones, as the picture is pasted."""
        if self.align == "corner":
            return (0, 0)
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def fractions(self, pixels: Sequence[float]) -> Numbers:
        """Converts pixels of the picture to fractions of the square.

        Args:
            pixels: x and y in turn: a point, a box, or several of them in a row.

        Returns:
            As many fractions.
        """
        left, top = self.offset
        return tuple((value + (top if place % 2 else left)) / self.side for place, value in enumerate(pixels))

    def pixels(self, fractions: Sequence[float]) -> Numbers:
        """Converts fractions of the square to pixels of the picture.

        Args:
            fractions: x and y in turn.

        Returns:
            As many pixels; those of the filling lie outside the picture.
        """
        left, top = self.offset
        return tuple(value * self.side - (top if place % 2 else left) for place, value in enumerate(fractions))

    def holds(self, pixels: Sequence[float], *, slack: float = 1.0) -> bool:
        """Returns whether pixels lie in the picture, or at most ``slack`` pixels beside it."""
        ends = (self.width, self.height)
        return all(-slack <= value <= ends[place % 2] + slack for place, value in enumerate(pixels))


def write_numbers(fractions: Iterable[float], *, digits: int = 2) -> str:
    """Writes fractions as text, cut to 0 to 1.

    Args:
        fractions: Of a point or a box; nothing stands for a point that is not there.
        digits: Decimals.

    Returns:
        ``[0.47, 0.44]``, or ``[]``.
    """
    return f"[{', '.join(f'{min(max(value, 0.0), 1.0):.{digits}f}' for value in fractions)}]"


def read_numbers(text: str) -> list[Numbers]:
    """Finds all points and boxes in a text.

    Args:
        text: Any text.

    Returns:
        The numbers of every pair of brackets that holds nothing else, in order; () for empty brackets.
    """
    found: list[Numbers] = []
    for inside in _BRACKET.findall(text):
        words = inside.replace(",", " ").split()
        if all(_NUMBER.fullmatch(word) for word in words):
            found.append(tuple(map(float, words)))
    return found
