"""Random styles of pictures (colours, fonts and sizes), and text whose box is known.

Pillow draws everything. It is ten to a hundred times faster than a plotting library, and its bundled FreeType draws the
same glyphs on every machine. Fonts: Pillow's own, and those in matplotlib's package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mcompose.errors import RequestError

if TYPE_CHECKING:
    from mcompose.lab.pictures.picture import Box

__all__ = ["CELL", "COLOURS", "Colour", "Sheet", "Style", "blank", "draw_style"]

Colour = tuple[int, int, int]

COLOURS: Final[dict[str, Colour]] = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (40, 90, 220), "yellow": (235, 200, 30),
    "purple": (148, 60, 200), "orange": (255, 127, 14), "cyan": (23, 190, 207), "pink": (240, 120, 190),
}  # fmt: skip
_FACES: Final = ("", "DejaVuSans.ttf", "DejaVuSerif.ttf")
CELL: Final = 12
"""Pixels per cell. Text is aligned to a grid of cells, two digits per cell, so that a tiny encoder can read it."""
_GROUNDS: Final[tuple[Colour, ...]] = (
    (255, 255, 255), (255, 255, 255), (250, 246, 235), (238, 244, 252), (242, 242, 242), (232, 240, 228),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Style of one picture.

    Args:
        ground: Colour of the background.
        ink: Colour of text and axes, with a high contrast to the background.
        grid: Colour of faint lines.
        palette: Colours of the data, all different.
        face: File of the font; empty for Pillow's own.
        shift: Offset of all text from its cells to the right and downwards, in pixels.
    """

    ground: Colour
    ink: Colour
    grid: Colour
    palette: tuple[Colour, ...]
    face: str
    shift: tuple[int, int]

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        """Loads the font in a size.

        Args:
            size: Size in pixels.

        Returns:
            The font.
        """
        return _font(self.face, size)


def draw_style(generator: np.random.Generator) -> Style:
    """Draws a random style.

    Args:
        generator: Source of randomness.

    Returns:
        A style whose ink is readable on its background.
    """
    ground = _GROUNDS[int(generator.integers(len(_GROUNDS)))]
    shade = int(generator.integers(0, 60))
    ink = (shade, shade, shade + int(generator.integers(40)))
    grid = (214, 214, 218)
    shift = (0, int(generator.integers(2)))
    names = [list(COLOURS)[i] for i in generator.permutation(len(COLOURS))]
    palette = tuple(_shifted(COLOURS[name], generator) for name in names)
    return Style(ground, ink, grid, palette, _FACES[int(generator.integers(len(_FACES)))], shift)


def _shifted(colour: Colour, generator: np.random.Generator) -> Colour:
    moved = np.clip(np.array(colour) + generator.integers(-18, 19, size=3), 0, 254)
    return int(moved[0]), int(moved[1]), int(moved[2])


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    if not face:
        own = ImageFont.load_default(size + 1)  # its letters are smaller than the others'
        if not isinstance(own, ImageFont.FreeTypeFont):
            raise RequestError(
                "The installed Pillow does not include FreeType.", hint="Install Pillow's own wheel: pip install pillow"
            )
        return own
    return ImageFont.truetype(_font_folder() / face, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _font_folder() -> Path:
    found = find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise RequestError(
            "The lab's pictures need the fonts of matplotlib.", hint="Install it: pip install 'mcompose[lab]'."
        )
    return Path(found.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"


@dataclass(frozen=True)
class Sheet:
    """A picture that is being drawn.

    Args:
        image: Image in RGB.
        pen: Pillow's drawing object for the image.
        style: Style of the picture.
    """

    image: Image.Image
    pen: ImageDraw.ImageDraw
    style: Style

    def write(self, text: str, at: tuple[int, int], *, fill: Colour | None = None) -> Box:
        """Writes a text into cells.

        Args:
            text: One line of at most four letters, which take two cells.
            at: Column and row of its first cell; fractions are positions between cells.
            fill: Colour of the text; None for ink.

        Returns:
            The box of its cells in pixels.
        """
        wide = CELL * (1 if len(text) < 3 else 2)
        fonts = (self.style.font(8), self.style.font(7), _font("", 7))
        font = next((font for font in fonts if font.getlength(text) < wide), fonts[-1])
        left, top = round(CELL * at[0]), round(CELL * at[1])
        place = (left + 1 + self.style.shift[0], top + CELL // 2 + self.style.shift[1])
        self.pen.text(place, text, font=font, fill=fill or self.style.ink, anchor="lm")
        return left, top, left + wide, top + CELL


def blank(width: int, height: int, style: Style) -> Sheet:
    """Creates an empty picture.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        style: Style of the picture.

    Returns:
        The sheet.
    """
    image = Image.new("RGB", (width, height), style.ground)
    return Sheet(image, ImageDraw.Draw(image), style)
