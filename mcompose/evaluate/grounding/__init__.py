"""Grounding: how well boxes and points of an answer lie where they should.

Answers hold fractions of the padded square as text (see ``mcompose.square``). A square's axes have one scale, so
overlaps and relative distances are those of pixels, and no answer needs to be converted back.
"""

from mcompose.evaluate.grounding.boxes import box_iou, iou, iou_at
from mcompose.evaluate.grounding.keypoints import oks, pck
from mcompose.evaluate.grounding.references import reference_text

__all__ = ["box_iou", "iou", "iou_at", "oks", "pck", "reference_text"]
