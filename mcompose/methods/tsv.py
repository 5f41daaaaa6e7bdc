"""TSV-Merge: keep each source's strongest singular vectors, and make those of different sources orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from mcompose.methods.core.declare import Range, method
from mcompose.methods.core.singular import (
    Eigen,
    average,
    combine,
    eigen,
    library,
    merge_matrices,
    products,
    rank_floor,
    wide,
)

__all__ = ["Share", "kept_count", "tsv"]

Share = Annotated[float, Range(0.0, 1.0)]
"""Share of a source's singular vectors; 0 stands for one part in the number of sources."""


def kept_count(share: float, *, size: int, sources: int) -> int:
    """Number of singular vectors that each source keeps.

    Args:
        share: As in recipes.
        size: How many there are: the short side of the tensor.
        sources: Number of sources.
    """
    return max(1, size // sources if share == 0 else int(size * share))


def _tsv(deltas: Sequence[Any], scale: float, *, share: float) -> Any:
    matrices, turned = wide(deltas)
    rows, longest = matrices[0].shape
    count = kept_count(share, size=rows, sources=len(matrices))
    kept = [eigen(products([delta], [delta]), longest=longest).largest(count) for delta in matrices]
    numpy = library(matrices[0])
    left = numpy.concatenate([one.vectors for one in kept], axis=1)
    lengths = numpy.concatenate([one.values for one in kept]) ** 0.5
    if lengths.shape[0] == 0:
        return average(deltas, scale=scale)  # nothing but zeros
    if len(kept) == 2 and all(one.values.shape[0] for one in kept):
        roots = [_inverse_root_of_two(cross, longest) for cross in _crossings(matrices, kept)]
    else:
        roots = [_inverse_root(overlaps, longest) for overlaps in (left.T @ left, _right_overlaps(matrices, kept))]
    core = roots[0] * lengths @ roots[1]
    lifted = left @ core * scale
    factors, start = [], 0
    for one in kept:
        stop = start + int(one.values.shape[0])
        factors.append((lifted[:, start:stop] / lengths[start:stop]) @ one.vectors.T)
        start = stop
    return combine(factors, matrices, turned=turned)


def _right_overlaps(matrices: Sequence[Any], kept: Sequence[Eigen]) -> Any:
    """V^T V of all right singular vectors side by side, with V_i = A_i^T U_i / S_i; a source's own are orthonormal."""
    numpy, count = library(matrices[0]), len(kept)
    sides = [one.vectors / one.values**0.5 for one in kept]
    blocks = [[numpy.diag(numpy.ones_like(one.values))] * count for one in kept]
    for i in range(count):
        for j in range(i):
            blocks[i][j] = sides[i].T @ products([matrices[i]], [matrices[j]]) @ sides[j]
            blocks[j][i] = blocks[i][j].T
    return numpy.concatenate([numpy.concatenate(row, axis=1) for row in blocks])


def _crossings(matrices: Sequence[Any], kept: Sequence[Eigen]) -> tuple[Any, Any]:
    """U_1^T U_2 and V_1^T V_2: with two sources, all overlaps that are neither one nor zero."""
    first, second = (one.vectors / one.values**0.5 for one in kept)
    rights = first.T @ products([matrices[0]], [matrices[1]]) @ second
    return kept[0].vectors.T @ kept[1].vectors, rights


def _inverse_root_of_two(cross: Any, longest: int) -> Any:
    """X^(-1/2) for X = [[1, C], [C^T, 1]], from a matrix of half the size.

    With C = P cos Q^T, every principal angle is a problem of two numbers with eigenvalues 1 + cos and 1 - cos, so the
    result is [[1 + C Q f(cos) Q^T C^T, C Q g(cos) Q^T], [., Q e(cos) Q^T]] for functions of numbers.
    """
    numpy = library(cross)
    values, vectors = numpy.linalg.eigh(cross.T @ cross)
    cosines = values.clip(0.0, 1.0) ** 0.5
    top = 1.0 + float(cosines[-1])
    plus = (1.0 + cosines) ** -0.5
    gap = 1.0 - cosines
    distinct = gap > top * rank_floor(longest) ** 2
    minus = numpy.where(distinct, (gap + ~distinct * 1.0) ** -0.5, 0.0 * gap)
    even, odd = (plus + minus) / 2.0, (plus - minus) / 2.0
    # Quotients by cosines that are almost zero, by their series: the next terms are below the rounding of float64.
    small = cosines < 1e-4
    safe = cosines + small * 1.0
    odd = numpy.where(small, -0.5 - 5.0 / 16.0 * cosines**2, odd / safe)
    bent = numpy.where(small, 3.0 / 8.0 + 35.0 / 128.0 * cosines**2, (even - 1.0) / safe**2)
    lifted = cross @ vectors
    upper = (lifted * bent) @ lifted.T
    upper += numpy.diag(numpy.ones_like(upper[0]))
    across = (lifted * odd) @ vectors.T
    lower = (vectors * even) @ vectors.T
    return numpy.concatenate([numpy.concatenate([upper, across], axis=1), numpy.concatenate([across.T, lower], axis=1)])


def _inverse_root(overlaps: Any, longest: int) -> Any:
    """X^(-1/2), which turns vectors with these inner products into the nearest orthonormal ones."""
    parts = eigen(overlaps, longest=longest)
    return parts.function(parts.values**-0.5)


@method("tsv", title="TSV-Merge (task singular vectors)", paper="arXiv:2412.00081", space="deltas", base="required")
def tsv(deltas: Any, *, lambda_: float = 1.0, share: Share = 0.0) -> Any:
    """Adds the sources' leading singular parts after making their singular vectors orthogonal to each other.

    With U, S, V the kept singular vectors and values of all sources side by side: lambda * U' S V'^T, where U' and V'
    are the orthonormal matrices nearest to U and V (their polar factors).

    Paper: Task Singular Vectors, arXiv:2412.00081 (TSV-Merge). As in the authors' code, each of M sources keeps
        size // M singular vectors, and tensors that are no matrices are averaged.
    Differs: singular values that are rounding (`rank_floor`) bring no vector along, and where vectors of several
        sources coincide, only the space that they span is orthogonalised: the authors' decomposition picks arbitrary
        directions in both cases. For folded adapters this is the merge in their core space (Core-Space merging,
        arXiv:2509.17786), without forming it. A tensor smaller than the number of sources keeps one vector. The
        authors leave one projection out by its name; here every matrix is merged, and a recipe's override chooses
        otherwise.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        lambda_: Factor of the merged delta.
        share: Share of the singular vectors that each source keeps; 0 is the paper's 1/M.

    Returns:
        The merged delta.
    """
    return merge_matrices(deltas, partial(_tsv, share=share), scale=lambda_)
