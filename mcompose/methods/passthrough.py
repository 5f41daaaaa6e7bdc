"""Passthrough: one source as it is, or scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcompose.methods.core.blend import Blend, blend
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import method

__all__ = ["passthrough"]


def _passthrough(gram: None, *, scale: float) -> Blend:
    return Blend(np.array([scale]))


@method(
    "passthrough",
    title="Passthrough",
    paper="",
    space="weights",
    base="unused",
    max_sources=1,
    program=blend_program(_passthrough, measured=False),
)
def passthrough(tensors: Any, *, scale: float = 1.0) -> Any:
    """Gives the only source, times ``scale``.

    Paper: none.
    Differs: nothing.

    Args:
        tensors: One float32 array.
        scale: Factor.

    Returns:
        The array, scaled.
    """
    return blend(tensors, _passthrough(None, scale=scale))
