"""SPHINX's weight mix: two language models, one number."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from mcompose.methods.core.blend import Blend, blend
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import Range, method

__all__ = ["weight_mix"]


def _weight_mix(gram: None, *, beta: float) -> Blend:
    return Blend(np.array([beta, 1.0 - beta]))


@method(
    "weight-mix",
    title="SPHINX weight mix",
    paper="arXiv:2311.07575",
    space="weights",
    base="unused",
    min_sources=2,
    max_sources=2,
    symmetric=False,
    program=blend_program(_weight_mix, measured=False),
)
def weight_mix(tensors: Any, *, beta: Annotated[float, Range(0.0, 1.0)] = 0.5) -> Any:
    """Mixes two sources: beta * first + (1 - beta) * second.

    Paper: SPHINX, arXiv:2311.07575 (real-world and synthetic captions).
    Differs: the share beta is open here; one half is the default.

    Args:
        tensors: Two float32 arrays of one shape.
        beta: Share of the first.

    Returns:
        The mix, float32.
    """
    return blend(tensors, _weight_mix(None, beta=beta))
