"""RobustMerge: merges the factors of adapters themselves, so that an adapter comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["robust_merge"]

Matrix = NDArray[np.float32]


def robust_merge(
    a_factors: Sequence[Matrix],
    b_factors: Sequence[Matrix],
    *,
    lambda_: float = 2.0,
    density: float = 0.2,
    lifted: float = 0.2,
) -> tuple[Matrix, Matrix]:
    """Prunes the factors of M adapters, makes up for it by a coefficient for each direction, and adds them.

    A direction of source i counts c_i = |A_i| / |pruned A_i| (sums over its row), where the smaller ones are lifted to
    the quantile ``1 - lifted`` of the source's own. A = lambda sum_i A_i, B = lambda sum_i c_i B_i / sum_i c_i, of the
    pruned factors.

    Paper: RobustMerge, arXiv:2502.17159; constants (2, 0.2, 0.2), counting and clamping are those of its code.
    Differs: float64 sums. A row of which nothing is kept counts infinitely in their code; here it counts as much as the
        largest of its source, and it adds nothing to A.

    Args:
        a_factors: M float32 arrays, shape (rank, inputs).
        b_factors: M float32 arrays, shape (outputs, rank).
        lambda_: Factor of either merged factor; the merged product has its square.
        density: Share of a factor's elements that is kept, by magnitude.
        lifted: Share of the directions that keep their coefficient; the others get the smallest of these.

    Returns:
        The merged A and B.
    """
    coefficients = []
    for factor in a_factors:
        kept = np.abs(_pruned(factor, density)).sum(axis=1, dtype=np.float64)
        whole = np.abs(factor).sum(axis=1, dtype=np.float64)
        shares = np.divide(whole, kept, out=np.zeros_like(whole), where=kept > 0)
        shares[kept == 0] = shares.max(initial=0.0) or 1.0
        floor = np.sort(shares)[min(len(shares) - 1, int(len(shares) * (1 - lifted)))]
        coefficients.append(np.maximum(shares, floor))
    merged_a = np.sum([_pruned(factor, density) for factor in a_factors], axis=0, dtype=np.float64)
    counted = zip(coefficients, b_factors, strict=True)
    merged_b = np.sum([share * _pruned(factor, density) for share, factor in counted], axis=0)
    merged_b /= np.sum(coefficients, axis=0)
    return np.asarray(lambda_ * merged_a, np.float32), np.asarray(lambda_ * merged_b, np.float32)


def _pruned(factor: Matrix, density: float) -> Matrix:
    """Keeps every magnitude from the one on that their code takes: the int(n (1 - density))-th smallest."""
    magnitudes = np.abs(factor).reshape(-1)
    rank = max(1, int(magnitudes.size * (1 - density)))
    return factor * (np.abs(factor) >= np.partition(magnitudes, rank - 1)[rank - 1])
