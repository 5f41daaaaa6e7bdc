"""Methods whose result is a sum of the sources: sum_i c_i x_i / divisor * scale.

The idea: linear, spherical and geometric means all lie in the span of their inputs, so all that a method
has to say is the coefficients, and all that it has to know about the tensors is how they lie to each other:
their Gram matrix (norms and inner products, summed in float64). A rule is therefore a function from an n x
n matrix to n numbers; this module applies it to whole arrays, numpy's or torch's. `blend_program` applies
the same rule to chunks.

A tensor may be one group, or a Gram matrix may be kept for each row (last dimension) or each column (first
dimension).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mcompose.errors import NumericsError
from mcompose.methods.core.arrays import as_kind, doubles, to_numpy

__all__ = ["Blend", "Groups", "blend", "cosines", "gram", "norms", "spread_over_groups", "total_weight"]

Groups = Literal["all", "rows", "columns"]


@dataclass(frozen=True)
class Blend:
    """What a rule decides.

    Args:
        coefficients: One a source, shape (n,), or (groups, n) when there is a Gram matrix for each group.
        divisor: The sum is divided by it,
        scale: then multiplied by it.
    """

    coefficients: np.ndarray
    divisor: float = 1.0
    scale: float = 1.0


def total_weight(weights: Sequence[float]) -> float:
    """Sums weights as the tensors are summed: in float32, in order.

    Raises:
        NumericsError: The sum is zero, and nothing can be divided by it.
    """
    total = np.float32(0)
    for weight in weights:
        total = np.float32(total + np.float32(weight))
    if total == 0:
        raise NumericsError(
            f"The weights {list(weights)} sum to zero, so they cannot be normalised.",
            hint="Change a weight, or set `normalize: false`.",
        )
    return float(total)


def norms(gram_: np.ndarray) -> np.ndarray:
    """Reads the lengths off a Gram matrix: (..., n, n) to (..., n)."""
    return np.sqrt(np.diagonal(gram_, axis1=-2, axis2=-1))


def cosines(gram_: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Reads the cosines of all pairs off a Gram matrix.

    Args:
        gram_: Shape (..., n, n).
        floor: Vectors no longer than this have cosine 0 with everything.

    Returns:
        Shape (..., n, n), clipped to [-1, 1].
    """
    length = norms(gram_)
    seen = length > floor
    safe = np.where(seen, length, 1.0)
    unit = gram_ / safe[..., :, None] / safe[..., None, :]
    return np.clip(np.where(seen[..., :, None] & seen[..., None, :], unit, 0.0), -1.0, 1.0)


def gram(tensors: Sequence[Any], *, groups: Groups = "all") -> np.ndarray:
    """Measures whole arrays.

    Args:
        tensors: n arrays of one shape.
        groups: One matrix for the tensor, for each row, or for each column.

    Returns:
        Float64, shape (n, n) or (groups, n, n).
    """
    vectors = [_grouped(tensor, groups) for tensor in tensors]
    pairs = [[(doubles(x) * doubles(y)).sum(1) for y in vectors] for x in vectors]
    matrix = np.array([[to_numpy(pair) for pair in row] for row in pairs], dtype=np.float64)
    matrix = np.moveaxis(matrix, -1, 0)
    return matrix[0] if groups == "all" else matrix


def blend(tensors: Sequence[Any], decision: Blend, *, groups: Groups = "all") -> Any:
    """Applies a rule's decision to whole arrays.

    Args:
        tensors: n float32 arrays of one shape.
        decision: The coefficients.
        groups: The groups that they were decided for.

    Returns:
        One array of the same shape and kind.
    """
    coefficients = np.atleast_2d(decision.coefficients.astype(np.float32))
    shares = [
        spread_over_groups(tensor, coefficients[:, index], groups) * tensor for index, tensor in enumerate(tensors)
    ]
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return total / np.float32(decision.divisor).item() * np.float32(decision.scale).item()


def spread_over_groups(tensor: Any, values: np.ndarray, groups: Groups) -> Any:
    """Lays one number a group out so that it multiplies ``tensor`` element by element."""
    if groups == "all" or tensor.ndim == 0:
        return float(values[0])
    shape = (*tensor.shape[:-1], 1) if groups == "rows" else (1, *tensor.shape[1:])
    laid = values.reshape(shape)
    return as_kind(laid, tensor)


def _grouped(tensor: Any, groups: Groups) -> Any:
    if groups == "all" or tensor.ndim == 0:
        return tensor.reshape(1, -1)
    if groups == "rows":
        return tensor.reshape(int(np.prod(tensor.shape[:-1])), tensor.shape[-1])
    return tensor.reshape(tensor.shape[0], int(np.prod(tensor.shape[1:]))).T
