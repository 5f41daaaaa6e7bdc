"""Overlap of boxes: intersection over union, its mean, and the share of answers that reach a threshold.

Paper: Yu et al. 2016, arXiv 1608.00272 (RefCOCO): an expression is found when the overlap is at least 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.square import Numbers, read_numbers

__all__ = ["box_iou", "check_box", "has_box", "iou", "iou_at"]


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes.

    Args:
        one: Left, top, right, bottom.
        other: The same, in the same unit.

    Returns:
        0 to 1; 0 for a box without an area.
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (one, other)]
    return shared / (sum(areas) - shared) if min(areas) > 0 else 0.0


def iou(output: str, reference: str) -> float:
    """Returns the overlap of an answer's first box with the reference's.

    Args:
        output: What the model wrote.
        reference: Text with one box.

    Returns:
        0 to 1; 0 for an answer without a box.
    """
    found = _boxes(output)
    return box_iou(found[0], _boxes(reference)[0]) if found else 0.0


def iou_at(output: str, reference: str, *, threshold: float) -> float:
    """Returns 1 for an overlap of at least ``threshold``, else 0; see :func:`iou`."""
    return float(iou(output, reference) >= threshold)


def has_box(output: str) -> bool:
    """Returns whether an answer has a box."""
    return bool(_boxes(output))


def check_box(reference: str) -> None:
    """Refuses a reference that is not one box.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It has no box, several, or one without an area.
    """
    boxes = _boxes(reference)
    if len(boxes) != 1:
        raise BadReferenceError(f"The reference has {len(boxes)} boxes, and one is scored: {reference[:60]}")
    left, top, right, bottom = boxes[0]
    if right <= left or bottom <= top:
        raise BadReferenceError(f"The reference is a box without an area: {reference[:60]}")


def _boxes(text: str) -> list[Numbers]:
    return [numbers for numbers in read_numbers(text) if len(numbers) == 4]
