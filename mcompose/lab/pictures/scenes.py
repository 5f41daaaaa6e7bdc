"""General pictures outside the experts' domains: coloured shapes, and a large handwritten digit."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from mcompose.errors import RequestError
from mcompose.lab.pictures.ink import COLOURS, Colour, blank, draw_style
from mcompose.lab.pictures.picture import Picture
from mcompose.lab.pictures.sources import Source
from mcompose.lab.pictures.tables import SIDE

if TYPE_CHECKING:
    from PIL import ImageDraw

__all__ = ["SHAPES", "SIDES", "render_digit", "render_shapes"]

SHAPES: Final = ("circle", "square", "triangle", "star")
SIDES: Final = ("left", "right", "top", "bottom")
_CELLS: Final = {"left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2)}
_NOISE: Final = 6


def render_shapes(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws one to three equal shapes of one colour.

    Args:
        generator: Source of randomness.
        source: Not used, since the pictures show no data.
        split: Not used.

    Returns:
        The picture; its ``truth`` is ``{"shape", "colour", "count", "side"}``; the side is empty for several shapes.
    """
    del source, split
    colour = list(COLOURS)[int(generator.integers(len(COLOURS)))]
    shape = SHAPES[int(generator.integers(len(SHAPES)))]
    count = 1 + int(generator.integers(3))
    side = SIDES[int(generator.integers(4))] if count == 1 else ""
    sheet = blank(SIDE, SIDE, draw_style(generator))
    fill = COLOURS[colour]
    boxes = []
    cells = [_CELLS[side]] if side else [(i % 3, i // 3) for i in generator.permutation(9)[:count].tolist()]
    for across, down in cells:
        radius = int(generator.integers(11, 15))
        x, y = 16 + 32 * across + int(generator.integers(-2, 3)), 16 + 32 * down + int(generator.integers(-2, 3))
        _shape(sheet.pen, shape, (x, y), radius, fill)
        boxes.append([x - radius, y - radius, x + radius, y + radius])
    truth = {"shape": shape, "colour": colour, "count": count, "side": side}
    return Picture(_noisy(sheet.image, generator), "shapes", truth, (), {"boxes": boxes})


def render_digit(generator: np.random.Generator, source: Source, *, split: str = "train") -> Picture:
    """Draws one of scikit-learn's handwritten digits, enlarged to most of the picture.

    Args:
        generator: Source of randomness.
        source: Not used, since the digits are the data.
        split: "train" or "test"; every fourth image is kept for "test".

    Returns:
        The picture; its ``truth`` is ``{"digit"}``.
    """
    del source
    images, targets = _digits()
    test = np.arange(len(images)) % 4 == 3
    own = np.flatnonzero(test if split == "test" else ~test)
    place = int(own[int(generator.integers(len(own)))])
    style = draw_style(generator)
    zoom = int(generator.integers(10, 12))
    alpha = Image.fromarray(images[place]).resize((8 * zoom, 8 * zoom), Image.Resampling.BILINEAR)
    image = blank(SIDE, SIDE, style).image
    left, top = (int(generator.integers(0, SIDE - 8 * zoom + 1)) for _ in range(2))
    image.paste(Image.new("RGB", alpha.size, style.ink), (left, top), alpha)
    return Picture(_noisy(image, generator), "digit", {"digit": int(targets[place])}, (), {"index": place})


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise RequestError(
            "The lab's handwritten digits need scikit-learn.", hint="Install it: pip install 'mcompose[lab]'."
        ) from error
    data: Any = load_digits()
    return np.clip(np.rint(data.images * (255 / 16)), 0, 255).astype(np.uint8), data.target


def _shape(pen: ImageDraw.ImageDraw, shape: str, centre: tuple[int, int], radius: int, fill: Colour) -> None:
    x, y = centre
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        half = round(radius * 0.85)
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    else:
        turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
        spokes = [radius if i % 2 == 0 else radius * 0.42 for i in range(10)]
        pen.polygon([(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(spokes, turns, strict=True)], fill=fill)


def _noisy(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.int16) + generator.integers(-_NOISE, _NOISE + 1, size=(SIDE, SIDE, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
