"""Cuts a matrix into two factors of low rank: the best ones, by its singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mcompose.errors import NumericsError
from mcompose.methods.core.arrays import doubles, singles
from mcompose.methods.core.singular import COLUMNS, ONE_BLAS_THREAD, eigen, products, wide

__all__ = ["Factors", "factorise", "shorten"]


@dataclass(frozen=True)
class Factors:
    """Two factors of a matrix.

    Args:
        b: Float32, shape (outputs, rank).
        a: Float32, shape (rank, inputs).
        error: ``||matrix - b @ a||``, Euclidean, with the rounding of both to float32.
        norm: ``||matrix||``.
    """

    b: Any
    a: Any
    error: float
    norm: float

    @property
    def rank(self) -> int:
        """Number of singular values that were kept."""
        return int(self.a.shape[0])


def factorise(matrix: Any, *, rank: int | None = None, energy: float | None = None) -> Factors:
    """Finds the factors of a rank whose product is nearest to a matrix; each gets the root of the singular values.

    Args:
        matrix: Float32, shape (outputs, inputs), not all zeros.
        rank: Largest rank; None for any. Singular values that are rounding (`rank_floor`) are left out.
        energy: Share of the sum of squares that is kept, with as few singular values as can be; None for all.

    Returns:
        The factors, with a rank of at least one.

    Raises:
        NumericsError: The matrix is not finite, or all zeros.
    """
    (long,), turned = wide([matrix])
    with ONE_BLAS_THREAD:
        gram = products([long], [long])
        total = float(gram.trace())
        if not 0 < total < float("inf"):
            raise NumericsError("A matrix that is zero or not finite does not have factors.")
        parts = eigen(gram, longest=int(long.shape[1]))
        kept = parts.largest(_count(parts.values, total, rank=rank, energy=energy))
        roots = kept.values**0.25
        short = singles(kept.vectors * roots)
        lifted = singles(products([(kept.vectors / roots).T], [long.T]))
        b, a = (lifted.T, short.T) if turned else (short, lifted)
        return Factors(b, a, error=_distance(matrix, b, a), norm=total**0.5)


def _count(values: Any, total: float, *, rank: int | None, energy: float | None) -> int:
    count = len(values) if rank is None else min(rank, len(values))
    if energy is None:
        return count
    kept = 0.0
    for index, value in enumerate(values[::-1][:count]):
        kept += float(value)
        if kept >= energy * total:
            return index + 1
    return count


def _distance(matrix: Any, b: Any, a: Any) -> float:
    squares = 0.0
    for start in range(0, matrix.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        squares += float(((doubles(matrix[:, columns]) - doubles(b) @ doubles(a[:, columns])) ** 2).sum())
    return squares**0.5


def shorten(b: Any, a: Any, *, rank: int | None = None, energy: float | None = None) -> Factors:
    """Finds the factors of a smaller rank whose product is nearest to that of two factors, without multiplying them.

    Args:
        b: Numpy, shape (outputs, rank).
        a: Numpy, shape (rank, inputs).
        rank: Largest rank; None for any.
        energy: Share of the product's sum of squares that is kept; None for all.

    Returns:
        The factors. ``error`` is that of exact factors.
    """
    with ONE_BLAS_THREAD:
        left, outer = np.linalg.qr(doubles(b))
        right, inner = np.linalg.qr(doubles(a).T)
        u, values, v = np.linalg.svd(outer @ inner.T, full_matrices=False)
        squares = values**2
        total = float(squares.sum())
        present = int((values > values[0] * np.finfo(np.float64).eps * len(values)).sum())
        count = max(1, min(present, _count(squares[::-1], total, rank=rank, energy=energy)))
        roots = values[:count] ** 0.5
        short, long = singles(left @ u[:, :count] * roots), singles((right @ v[:count].T * roots).T)
    return Factors(short, long, error=float(squares[count:].sum()) ** 0.5, norm=total**0.5)
