"""A rendered picture with its exact label."""

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
"""Domains in the router's order; index 0 stands for no expert."""
KINDS: Final = {
    "bar": "chart", "line": "chart", "pie": "chart", "table": "table", "page": "document", "formula": "document",
    "shapes": "none", "digit": "none",
}  # fmt: skip
"""Kind of picture -> domain."""


@dataclass(frozen=True)
class Mark:
    """One thing in a picture that can be read.

    Args:
        box: Left, top, right and bottom in pixels; right and bottom are exclusive.
        fields: Words that it shows, one per field: ``{"name": "Jan", "tens": "1", "units": "2"}``.
    """

    box: Box
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Picture:
    """A picture with its exact label.

    Args:
        image: Image in RGB.
        kind: Kind of picture, a key of ``KINDS``.
        truth: Label that questions are made of, as JSON; its form depends on the kind.
        marks: Marks that an expert must read, in reading order.
        shapes: Boxes of the drawn data, for checks that read pixels: ``{"bars": [[left, top, right, bottom], ...]}``.
    """

    image: Image.Image
    kind: str
    truth: Mapping[str, Any]
    marks: tuple[Mark, ...] = ()
    shapes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """Domain of the picture's kind."""
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
