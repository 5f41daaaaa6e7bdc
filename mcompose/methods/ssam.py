"""SSAM: add what the task vectors have in the row and column spaces that they use together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mcompose.methods.core.arrays import singles
from mcompose.methods.core.declare import method
from mcompose.methods.core.singular import combine, eigen, library, merge_matrices, products, wide
from mcompose.methods.tsv import Share, kept_count

__all__ = ["ssam"]


def _ssam(deltas: Sequence[Any], scale: float, *, share: float) -> Any:
    matrices, turned = wide(deltas)
    rows, columns = (int(size) for size in matrices[0].shape)
    count = kept_count(share, size=rows, sources=len(matrices))
    square = sum((products([one], [one]) for one in matrices[1:]), start=products([matrices[0]], [matrices[0]]))
    left = eigen(square, longest=columns).largest(count)
    onto_left = left.function(left.values * 0.0 + scale)
    if len(matrices) * rows <= columns:
        return combine(_stacked(matrices, onto_left, count), matrices, turned=turned)
    flipped = [one.T for one in matrices]
    inputs = sum((products([one], [one]) for one in flipped[1:]), start=products([flipped[0]], [flipped[0]]))
    right = eigen(inputs, longest=columns).largest(count)
    whole = singles(onto_left @ products(matrices, [right.function(right.values * 0.0 + 1.0)]))
    return whole.T if turned else whole


def _stacked(matrices: Sequence[Any], onto_left: Any, count: int) -> list[Any]:
    """F_j of U U^T (sum_i A_i) V V^T = sum_j F_j A_j, with V the leading right vectors of the sources on each other."""
    numpy, many = library(matrices[0]), len(matrices)
    lines = [numpy.concatenate([products([one], [other]) for other in matrices], axis=1) for one in matrices]
    right = eigen(numpy.concatenate(lines), longest=int(matrices[0].shape[1])).largest(count)
    total = sum(lines[1:], start=lines[0])
    factor = onto_left @ total @ right.function(1.0 / right.values)
    rows = int(factor.shape[1]) // many
    return [factor[:, index * rows : (index + 1) * rows] for index in range(many)]


@method("ssam", title="SSAM (singular subspace alignment)", paper="arXiv:2603.21584", space="deltas", base="required")
def ssam(deltas: Any, *, lambda_: float = 1.0, share: Share = 0.0) -> Any:
    """Projects the sum of the deltas on their common subspaces: lambda * U U^T (sum_i d_i) V V^T.

    U and V are the leading eigenvectors of sum_i d_i d_i^T and of sum_i d_i^T d_i: the bases of one size that lose
    least of all sources together.

    Paper: SSAM, arXiv:2603.21584, its rule for the language model; as in DAMC, it keeps the modalities' own changes
        apart. Its scale was tuned by hand. Tensors that are no matrices are averaged.
    Differs: no code was found, and this is what is confirmed of the paper: the two sums, their leading subspaces, the
        projection of every source, the sum. The size of the subspaces is not, hence ``share``, whose default is that of
        `tsv`. Where eigenvalues around the cut are equal, which direction is kept is arbitrary.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        lambda_: Factor of the merged delta.
        share: Share of the short side that the subspaces keep; 0 stands for 1/M.

    Returns:
        The merged delta.
    """
    return merge_matrices(deltas, partial(_ssam, share=share), scale=lambda_)
