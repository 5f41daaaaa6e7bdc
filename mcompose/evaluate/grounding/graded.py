"""Metrics of boxes and points, by their names in task files.

==========================  =========================================================================================
iou@0.5, iou@0.75           share of answers whose box overlaps the reference's by at least so much
iou                         mean overlap (intersection over union)
oks                         object keypoint similarity, with COCO's sigmas
pck@0.2, pck@0.1, pck@0.05  share of labelled points within that part of the box's longer side
==========================  =========================================================================================
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mcompose.evaluate.extraction.graded import Graded
from mcompose.evaluate.grounding import boxes, keypoints

__all__ = ["GROUNDED"]

_OVERLAPS: Final = (0.5, 0.75)
_DISTANCES: Final = (0.2, 0.1, 0.05)

_boxed = partial(Graded, needs=(), check=boxes.check_box, readable=boxes.has_box)
_pointed = partial(Graded, needs=(), readable=keypoints.has_points)

GROUNDED: Final[dict[str, Graded]] = {
    **{f"iou@{share}": _boxed(partial(boxes.iou_at, threshold=share)) for share in _OVERLAPS},
    "iou": _boxed(boxes.iou),
    "oks": _pointed(keypoints.oks, check=keypoints.check_scaled_points),
    **{
        f"pck@{alpha}": _pointed(partial(keypoints.pck, alpha=alpha), check=keypoints.check_boxed_points)
        for alpha in _DISTANCES
    },
}
"""Name to metric."""
