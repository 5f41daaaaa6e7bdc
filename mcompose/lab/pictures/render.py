"""Renders any kind of picture by one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from mcompose.lab.pictures.charts import render_bar, render_line, render_pie
from mcompose.lab.pictures.documents import render_formula, render_page
from mcompose.lab.pictures.picture import KINDS, Picture
from mcompose.lab.pictures.scenes import render_digit, render_shapes
from mcompose.lab.pictures.sources import load_sources
from mcompose.lab.pictures.tables import render_table
from mcompose.lab.randomness import generator_for

__all__ = ["RENDERERS", "kinds_of", "render", "render_many"]

RENDERERS: Final[dict[str, Callable[..., Picture]]] = {
    "bar": render_bar,
    "line": render_line,
    "pie": render_pie,
    "table": render_table,
    "page": render_page,
    "formula": render_formula,
    "shapes": render_shapes,
    "digit": render_digit,
}


def kinds_of(domain: str) -> tuple[str, ...]:
    """Returns the kinds of pictures of a domain."""
    return tuple(kind for kind, own in KINDS.items() if own == domain)


def render(kind: str, generator: np.random.Generator, *, split: str = "train") -> Picture:
    """Draws one picture from a source drawn at random.

    Args:
        kind: A key of ``RENDERERS``.
        generator: Source of randomness.
        split: "train" or "test": the real records that it may show.

    Returns:
        The picture.
    """
    sources = load_sources()
    source = sources[int(generator.integers(len(sources)))]
    return RENDERERS[kind](generator, source, split=split)


def render_many(domain: str, count: int, *, seed: int, purpose: str, split: str = "train") -> list[Picture]:
    """Draws pictures of a domain, its kinds in turn.

    Args:
        domain: One of ``DOMAINS``.
        count: Number of pictures.
        seed: The family's seed.
        purpose: Name of the use; different purposes give different pictures.
        split: "train" or "test".

    Returns:
        The pictures.
    """
    generator = generator_for(seed, "pictures", domain, purpose, split)
    kinds = kinds_of(domain)
    return [render(kinds[i % len(kinds)], generator, split=split) for i in range(count)]
