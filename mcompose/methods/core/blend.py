"""Methods whose result is a sum of the sources: sum_i c_i x_i / divisor * scale.

Linear, spherical and geometric means are all linear combinations of their inputs, so a method only has to choose the
coefficients, and it only needs the Gram matrix of the tensors (norms and inner products, summed in float64). A rule is
therefore a function from an n x n matrix to n numbers; this module applies it to whole arrays of numpy or torch.
``blend_program`` applies the same rule to chunks.

A tensor may be one group, or have a Gram matrix for each row (last dimension) or each column (first dimension).
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
    """Result of a blend rule.

    Args:
        coefficients: One number for each source, shape (n,), or (groups, n) with a Gram matrix for each group.
        divisor: Divisor of the sum.
        scale: Factor of the divided sum.
    """

    coefficients: np.ndarray
    divisor: float = 1.0
    scale: float = 1.0


def total_weight(weights: Sequence[float]) -> float:
    """Sums weights as the tensors are summed: in float32, in order.

    Raises:
        NumericsError: The sum is zero, so it cannot be a divisor.
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
    """Returns the norms from a Gram matrix: (..., n, n) to (..., n)."""
    return np.sqrt(np.diagonal(gram_, axis1=-2, axis2=-1))


def cosines(gram_: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Returns the cosines of all pairs from a Gram matrix.

    Args:
        gram_: Shape (..., n, n).
        floor: Smallest norm; vectors of this norm or less have cosine 0 with all others.

    Returns:
        Shape (..., n, n), clipped to [-1, 1].
    """
    length = norms(gram_)
    seen = length > floor
    safe = np.where(seen, length, 1.0)
    unit = gram_ / safe[..., :, None] / safe[..., None, :]
    return np.clip(np.where(seen[..., :, None] & seen[..., None, :], unit, 0.0), -1.0, 1.0)


def gram(tensors: Sequence[Any], *, groups: Groups = "all") -> np.ndarray:
    """Computes Gram matrices of whole arrays.

    Args:
        tensors: n arrays of the same shape.
        groups: Whether to compute one matrix for the tensor, for each row, or for each column.

    Returns:
        Float64, shape (n, n) or (groups, n, n).
    """
    vectors = [_grouped(tensor, groups) for tensor in tensors]
    pairs = [[(doubles(x) * doubles(y)).sum(1) for y in vectors] for x in vectors]
    matrix = np.array([[to_numpy(pair) for pair in row] for row in pairs], dtype=np.float64)
    matrix = np.moveaxis(matrix, -1, 0)
    return matrix[0] if groups == "all" else matrix


def blend(tensors: Sequence[Any], decision: Blend, *, groups: Groups = "all") -> Any:
    """Applies the result of a rule to whole arrays.

    Args:
        tensors: n float32 arrays of the same shape.
        decision: Result of the rule.
        groups: Groups of the coefficients.

    Returns:
        One array of the same shape and library.
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
    """Reshapes one number for each group so that it multiplies ``tensor`` element by element."""
    if groups == "all" or tensor.ndim == 0:
        return float(values[0])
    shape = (*tensor.shape[:-1], 1) if groups == "rows" else (1, *tensor.shape[1:])
    return as_kind(values.reshape(shape), tensor)


def _grouped(tensor: Any, groups: Groups) -> Any:
    if groups == "all" or tensor.ndim == 0:
        return tensor.reshape(1, -1)
    if groups == "rows":
        return tensor.reshape(int(np.prod(tensor.shape[:-1])), tensor.shape[-1])
    return tensor.reshape(tensor.shape[0], int(np.prod(tensor.shape[1:]))).T
