"""Iso-C: add the task vectors, then make all directions of the sum equally long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcompose.methods.core.declare import method
from mcompose.methods.core.singular import average, combine, eigen, merge_matrices, products, wide

__all__ = ["iso_c"]


def _iso_c(deltas: Sequence[Any], scale: float) -> Any:
    matrices, turned = wide(deltas)
    parts = eigen(products(matrices, matrices), longest=matrices[0].shape[1])
    lengths = parts.values**0.5
    if lengths.shape[0] == 0:
        return average(deltas, scale=scale)  # nothing but zeros, or sources that cancel
    return combine([parts.function(float(lengths.mean()) * scale / lengths)], matrices, turned=turned)


@method(
    "iso-c",
    title="Iso-C (isotropic merging in the common subspace)",
    paper="arXiv:2502.04959",
    space="deltas",
    base="required",
    min_sources=2,
)
def iso_c(deltas: Any, *, lambda_: float = 1.0) -> Any:
    """Replaces every singular value of the sum of the deltas by their mean: lambda * mean(S) * U V^T.

    Paper: Isotropic Model Merging, arXiv:2502.04959 (Iso-C). As in the authors' code, the matrix is the sum of the
        deltas, not their mean, and tensors that are no matrices are averaged.
    Differs: singular values that are rounding (`rank_floor`) neither count in the mean nor get a direction, which
        the authors' decomposition would pick arbitrarily: this matters for sources of low rank, whose sum keeps its
        rank and its nuclear norm here. For folded adapters this is the merge in their core space (Core-Space merging,
        arXiv:2509.17786), and ``lambda`` counts min(outputs, inputs) / rank times as much as in the authors' function,
        whose mean runs over the zeros too; the plan of a merge says the factor. The authors leave one projection out by
        its name; here every matrix is merged, and a recipe's override chooses otherwise. One source alone would not
        give itself, so two are asked for.

    Args:
        deltas: M >= 2 float32 arrays of one shape, source minus base.
        lambda_: Factor of the merged delta; the authors choose it by validation.

    Returns:
        The merged delta.
    """
    return merge_matrices(deltas, _iso_c, scale=lambda_)
