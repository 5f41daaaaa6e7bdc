"""Key points: object keypoint similarity (OKS) and the share of correct key points (PCK).

A reference is JSON text: ``{"points": {"nose": [0.1, 0.2]}, "box": [...], "area": 0.05}``, in fractions of the padded
square; ``points`` may be a list, in which ``[]`` stands for a point without a label. An answer names its points
("nose [0.10, 0.20], left eye [0.12, 0.18]") or lists them in order.

OKS is the mean over labelled points of exp(-d^2 / (2 area (2 sigma)^2)), PCK the share with d <= alpha times the longer
side of the box, where d is the distance from the reference.

Paper: OKS, the key point challenge of COCO (Lin et al. 2014, arXiv 1405.0312), with its sigmas; PCK, Yang and Ramanan
2013.
Differs: Without an area, OKS takes the box's: COCO always has the segment's, which is smaller. A point that an answer
lacks counts as 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.square import Numbers, read_numbers

__all__ = ["COCO_SIGMAS", "check_boxed_points", "check_scaled_points", "has_points", "oks", "pck"]

COCO_SIGMAS: Final[dict[str, float]] = {
    "nose": 0.026,
    "left eye": 0.025,
    "right eye": 0.025,
    "left ear": 0.035,
    "right ear": 0.035,
    "left shoulder": 0.079,
    "right shoulder": 0.079,
    "left elbow": 0.072,
    "right elbow": 0.072,
    "left wrist": 0.062,
    "right wrist": 0.062,
    "left hip": 0.107,
    "right hip": 0.107,
    "left knee": 0.087,
    "right knee": 0.087,
    "left ankle": 0.089,
    "right ankle": 0.089,
}
"""COCO's key points in its order, and how far people's labels of each are apart, relative to the person's size."""


@dataclass(frozen=True)
class _Reference:
    """A reference that was read.

    Args:
        names: Names of the points; empty for points in order.
        points: x and y of each; () without a label.
        area: Area of what they belong to; 0 when it is not known.
        side: Longer side of its box; 0 without a box.
        sigmas: One per point; empty when they are not known.
    """

    names: tuple[str, ...]
    points: tuple[Numbers, ...]
    area: float
    side: float
    sigmas: tuple[float, ...]


def oks(output: str, reference: str) -> float:
    """Returns the object keypoint similarity of an answer.

    Args:
        output: What the model wrote.
        reference: JSON text; see above.

    Returns:
        0 to 1.
    """
    wanted = _read(reference)
    values = []
    for distance, sigma in zip(_distances(output, wanted), wanted.sigmas, strict=True):
        if distance is not None:
            values.append(math.exp(-(distance**2) / (2 * wanted.area * (2 * sigma) ** 2)))
    return sum(values) / len(values)


def pck(output: str, reference: str, *, alpha: float) -> float:
    """Returns the share of labelled points that an answer has within ``alpha`` times the longer side of the box.

    Args:
        output: What the model wrote.
        reference: JSON text; see above.
        alpha: Largest distance, relative to the box.

    Returns:
        0 to 1.
    """
    wanted = _read(reference)
    distances = [distance for distance in _distances(output, wanted) if distance is not None]
    return sum(distance <= alpha * wanted.side * (1 + 1e-9) for distance in distances) / len(distances)


def has_points(output: str) -> bool:
    """Returns whether an answer has a point."""
    return any(len(numbers) == 2 for numbers in read_numbers(output))


def check_scaled_points(reference: str) -> None:
    """Refuses a reference that has no OKS.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It is not such a text, or has no labelled point, no area and box, or no sigmas.
    """
    wanted = _read(reference)
    if wanted.area <= 0:
        raise BadReferenceError("OKS needs the 'area' or the 'box' of what the points belong to.")
    if len(wanted.sigmas) != len(wanted.points):
        raise BadReferenceError(
            "OKS needs 'sigmas', one for each point, where the points are not the 17 of COCO in order or by name."
        )


def check_boxed_points(reference: str) -> None:
    """Refuses a reference that has no PCK.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It is not such a text, or has no labelled point or no box.
    """
    if _read(reference).side <= 0:
        raise BadReferenceError("PCK needs the 'box' of what the points belong to.")


def _read(reference: str) -> _Reference:
    try:
        table: Any = json.loads(reference)
    except ValueError:
        table = None
    points = table.get("points") if isinstance(table, Mapping) else None
    if not isinstance(points, Mapping | list) or not points:
        raise BadReferenceError(f"The reference is not a JSON object with 'points': {reference[:60]}")
    names = tuple(points) if isinstance(points, Mapping) else ()
    rows = tuple(tuple(point or ()) for point in (points.values() if isinstance(points, Mapping) else points))
    if not any(rows) or any(len(row) not in (0, 2) for row in rows):
        raise BadReferenceError(
            f"The reference has no labelled point, or one that is not two numbers: {reference[:60]}"
        )
    left, top, right, bottom = table.get("box") or (0.0, 0.0, 0.0, 0.0)
    area = table.get("area") or (right - left) * (bottom - top)
    return _Reference(names, rows, area, max(right - left, bottom - top), _sigmas(table, names, len(rows)))


def _sigmas(table: Mapping[str, Any], names: Sequence[str], count: int) -> tuple[float, ...]:
    if table.get("sigmas"):
        return tuple(table["sigmas"])
    plain = [_plain(name) for name in names]
    if names and all(name in COCO_SIGMAS for name in plain):
        return tuple(COCO_SIGMAS[name] for name in plain)
    return tuple(COCO_SIGMAS.values()) if not names and count == len(COCO_SIGMAS) else ()


def _distances(output: str, wanted: _Reference) -> list[float | None]:
    """Returns how far every point is from the reference: infinity where the answer lacks it, None without a label."""
    given = _named(output, wanted.names) if wanted.names else _in_order(output)
    found: list[float | None] = []
    for place, point in enumerate(wanted.points):
        answer = given[place] if place < len(given) else ()
        if not point:
            found.append(None)
        else:
            found.append(math.dist(answer, point) if len(answer) == 2 else math.inf)
    return found


def _in_order(output: str) -> list[Numbers]:
    return [numbers for numbers in read_numbers(output) if len(numbers) in (0, 2)]


def _named(output: str, names: Sequence[str]) -> list[Numbers]:
    """Returns the point behind each name; () where there is none."""
    text, found = _plain(output), []
    for name in names:
        match = re.search(rf"(?<!\w){re.escape(_plain(name))}\s*:?\s*(\[[^\[\]]*\])", text)
        numbers = read_numbers(match[1]) if match else []
        found.append(numbers[0] if numbers else ())
    return found


def _plain(text: str) -> str:
    return text.casefold().replace("_", " ").strip()
