"""Spherical interpolation of two sources: SLERP and NuSLERP."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcompose.methods.core.blend import Blend, Groups, blend, cosines, gram
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import Weights, method

__all__ = ["nuslerp", "slerp"]


def _arc(cosine: np.ndarray, t: float, straight: np.ndarray) -> Blend:
    theta = np.arccos(np.where(straight, 0.0, cosine))
    first = np.where(straight, 1.0 - t, np.sin((1.0 - t) * theta) / np.sin(theta))
    second = np.where(straight, t, np.sin(t * theta) / np.sin(theta))
    return Blend(np.stack([first, second], axis=-1))


def _slerp(matrix: np.ndarray, *, t: float) -> Blend:
    cosine = cosines(matrix, floor=1e-8)[..., 0, 1]
    return _arc(cosine, t, np.abs(cosine) > 0.9995)


def _nuslerp(matrix: np.ndarray, *, weights: Weights, nuslerp_row_wise: bool, nuslerp_flatten: bool) -> Blend:
    total = sum(weights)
    cosine = cosines(matrix)[..., 0, 1]
    # An angle below 1e-6 is a straight line for float32, and the quotient of sines loses its digits.
    straight = 1.0 - np.square(cosine) <= 1e-12
    return _arc(cosine, 0.5 if abs(total) < 1e-6 else weights[1] / total, straight)


def _groups(*, weights: Weights, nuslerp_row_wise: bool, nuslerp_flatten: bool) -> Groups:
    return "all" if nuslerp_flatten else "columns" if nuslerp_row_wise else "rows"


@method(
    "slerp",
    title="SLERP",
    paper="",
    space="weights",
    base="unused",
    min_sources=2,
    max_sources=2,
    symmetric=False,
    program=blend_program(_slerp),
)
def slerp(tensors: Any, *, t: float) -> Any:
    """Walks along the great circle from the first source (t = 0) to the second (t = 1).

    The direction turns at constant speed; vectors that are nearly parallel or opposite (cosine beyond 0.9995) are
    interpolated along the straight line. A zero vector counts as perpendicular to everything.

    Paper: Animating rotation with quaternion curves, Shoemake 1985.
    Differs: from mergekit in the sums, which are float64 here; its ``base_model`` is the first source here.

    Args:
        tensors: Two float32 arrays of one shape.
        t: Place on the way.

    Returns:
        The interpolated tensor, float32.
    """
    return blend(tensors, _slerp(gram(tensors), t=t))


@method(
    "nuslerp",
    title="NuSLERP",
    paper="",
    space="weights",
    base="optional",
    min_sources=2,
    max_sources=2,
    program=blend_program(_nuslerp, groups=_groups),
)
def nuslerp(tensors: Any, *, weights: Weights, nuslerp_row_wise: bool = False, nuslerp_flatten: bool = True) -> Any:
    """Spherical interpolation by weights, of tensors or of deltas, whole or in parts.

    The second source's share of the weights is the place on the way; weights that sum to zero mean the middle. With a
    base, the deltas from it are interpolated.

    Paper: none; mergekit's own method.
    Differs: mergekit measures in float32, and takes vectors for parallel a little earlier or later.

    Args:
        tensors: Two float32 arrays of one shape; deltas when there is a base.
        weights: Two weights.
        nuslerp_row_wise: Without ``nuslerp_flatten``: vectors along the first dimension, not the last.
        nuslerp_flatten: Whether the whole tensor is one vector.

    Returns:
        The interpolated tensor, float32.
    """
    settings = {"nuslerp_row_wise": nuslerp_row_wise, "nuslerp_flatten": nuslerp_flatten}
    groups = _groups(weights=weights, **settings)
    return blend(tensors, _nuslerp(gram(tensors, groups=groups), weights=weights, **settings), groups=groups)
