"""Karcher mean: the average of directions on the sphere."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from mcompose.methods.core.blend import Blend, blend, cosines, gram, norms, total_weight
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import Range, Weights, method

__all__ = ["karcher"]


def _karcher(matrix: np.ndarray, *, weights: Weights, max_iter: int, tol: float) -> Blend:
    shares = np.asarray(weights, np.float64) / total_weight(weights)
    length = norms(matrix)
    seen = length > 0
    if not seen.any() or shares[seen].sum() == 0:
        return Blend(np.zeros(len(length)))
    mean = _mean_direction(cosines(matrix), np.where(seen, shares, 0.0), max_iter=max_iter, tol=tol)
    return Blend(mean / np.where(seen, length, 1.0) * (shares @ length))


def _mean_direction(cosine: np.ndarray, shares: np.ndarray, *, max_iter: int, tol: float) -> np.ndarray:
    """Iterates on coefficients over unit vectors: every point on the way lies in their span."""
    shares = shares / shares.sum()
    mean = _unit(shares, cosine, tol)
    if mean is None:
        mean = np.zeros_like(shares)
        mean[np.flatnonzero(np.diagonal(cosine))[0]] = 1.0
    for _ in range(max_iter):
        dots = np.clip(cosine @ mean, -1.0, 1.0)
        theta = np.arccos(dots)
        nowhere = (theta < tol) | (theta > np.pi - tol)  # there already, or opposite: every way is as short
        pull = np.where(nowhere, 0.0, shares * theta / np.where(nowhere, 1.0, np.sin(theta)))
        tangent = pull - (pull @ dots) * mean
        length = np.sqrt(max(0.0, tangent @ cosine @ tangent))
        if length < tol:
            break
        step = np.cos(length) * mean + np.sin(length) * tangent / length
        unit = _unit(step, cosine, tol)
        mean = step if unit is None else unit
    return mean


def _unit(coefficients: np.ndarray, cosine: np.ndarray, tol: float) -> np.ndarray | None:
    length = np.sqrt(max(0.0, coefficients @ cosine @ coefficients))
    return None if length < tol else coefficients / length


@method(
    "karcher",
    title="Karcher mean",
    paper="arXiv:2603.04972",
    space="weights",
    base="unused",
    program=blend_program(_karcher),
)
def karcher(
    tensors: Any,
    *,
    weights: Weights,
    max_iter: Annotated[int, Range(0)] = 10,
    tol: Annotated[float, Range(0.0)] = 1e-5,
) -> Any:
    """Averages the directions on the sphere, and the lengths on the line.

    Paper: arXiv:2603.04972 (as named by mergekit).
    Differs: mergekit has no weights (equal ones here are the same), iterates on tensors in their own precision, and
        takes a tensor shorter than ``tol`` for zero. Here the iteration runs on coefficients in float64, only a
        zero tensor has no direction, and a source opposite to the mean does not turn it.

    Args:
        tensors: M float32 arrays of one shape.
        weights: One weight for each source; normalised to sum one.
        max_iter: Most steps.
        tol: A step or an angle below it counts as none.

    Returns:
        The mean, float32.

    Raises:
        NumericsError: The weights sum to zero.
    """
    return blend(tensors, _karcher(gram(tensors), weights=weights, max_iter=max_iter, tol=tol))
