"""A rendered picture and what it truly shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DOMAINS", "EXPERTS", "KINDS", "Box", "Mark", "Picture"]

Box = tuple[int, int, int, int]

EXPERTS: Final = ("chart", "table", "document")
"""Domains that have an expert."""
DOMAINS: Final = ("none", *EXPERTS)
"""In the router's order: 0 is no expert."""
KINDS: Final = {
    "bar": "chart", "line": "chart", "pie": "chart", "table": "table", "page": "document", "formula": "document",
    "shapes": "none", "digit": "none",
}  # fmt: skip
"""Kind of picture -> domain."""


@dataclass(frozen=True)
class Mark:
    """One thing in a picture that can be read.

    Args:
        box: Left, top, right and bottom in pixels; right and bottom are outside.
        fields: What it says, each field one word: ``{"name": "Jan", "tens": "1", "units": "2"}``.
    """

    box: Box
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Picture:
    """A picture with its exact label.

    Args:
        image: RGB.
        kind: A key of ``KINDS``.
        truth: What questions are made of; JSON, of a form of the kind's own.
        marks: What an expert must read, in reading order.
        shapes: Where the data are drawn, for checks that read pixels: ``{"bars": [[left, top, right, bottom], ...]}``.
    """

    image: Image.Image
    kind: str
    truth: Mapping[str, Any]
    marks: tuple[Mark, ...] = ()
    shapes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """Its domain."""
        return KINDS[self.kind]

    def label(self) -> dict[str, Any]:
        """Returns everything but the pixels, as JSON."""
        return {
            "kind": self.kind,
            "domain": self.domain,
            "truth": dict(self.truth),
            "marks": [{"box": list(mark.box), **mark.fields} for mark in self.marks],
            "shapes": dict(self.shapes),
        }
