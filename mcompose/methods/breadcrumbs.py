"""Model breadcrumbs: drop the largest and the smallest elements of every delta, then add up or elect signs."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Annotated, Any, Literal

from mcompose.methods.core.declare import PerSource, Range, Weights, each, method
from mcompose.methods.core.method import Program, TensorTask
from mcompose.methods.core.prune import (
    Density,
    NormRescale,
    add_up,
    band_ranks,
    elect_weighted,
    keep_ranks,
    keep_row_ranks,
    match_norm,
)
from mcompose.methods.core.prune_program import Combination, Cut, KeepRanks, KeepRowRanks, PruneProgram

__all__ = ["breadcrumbs", "breadcrumbs_ties"]

_breadcrumbs = partial(
    method, paper="arXiv:2312.06795", space="deltas", base="required", mergekit_ignored=("int8_mask",)
)
"""What both variants are."""

Gamma = Annotated[PerSource, Range(0.0, 1.0)]
"""Share of the elements that is dropped at the top."""

Within = Literal["tensor", "row"]
"""What elements are ranked in: the whole tensor (mergekit), or each row, its last dimension (the authors' code)."""


def _cut(shape: tuple[int, ...], share: float, top: float, within: Within) -> Cut:
    if within == "row":
        row = _row(shape)
        return KeepRowRanks(band_ranks(row, share, top), row=row)
    size = prod(shape)
    return KeepRanks(band_ranks(size, share, top), size)


def _row(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _program(
    task: TensorTask, combination: Combination, *, density: PerSource, gamma: PerSource, within: Within, rescale: str
) -> Program:
    count = len(task.sources)
    cuts = [
        _cut(task.shape, share, top, within)
        for share, top in zip(each(density, count), each(gamma, count), strict=True)
    ]
    return PruneProgram(cuts, combination, match_norm=rescale == "mergekit")


def _linear_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **pruning: Any) -> Program:
    return _program(task, Combination.added_up(weights, normalize=normalize, lambda_=lambda_), **pruning)


def _ties_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **pruning: Any) -> Program:
    return _program(task, Combination.by_election(weights, normalize=normalize, lambda_=lambda_), **pruning)


def _banded(deltas: Any, density: PerSource, gamma: PerSource, within: Within, rescale: str) -> list[Any]:
    values = []
    shares, tops = each(density, len(deltas)), each(gamma, len(deltas))
    for delta, share, top in zip(deltas, shares, tops, strict=True):
        if within == "row":
            kept = keep_row_ranks(delta, band_ranks(_row(tuple(delta.shape)), share, top))
        else:
            kept = keep_ranks(delta, band_ranks(prod(delta.shape), share, top))
        values.append(match_norm(kept, delta) if rescale == "mergekit" else kept)
    return values


@_breadcrumbs("breadcrumbs", title="Model breadcrumbs", program=_linear_program)
def breadcrumbs(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    within: Within = "tensor",
    rescale: NormRescale = "none",
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Drops the ``gamma`` largest elements of every delta and the smallest beyond ``density``, adds up.

    Paper: Model breadcrumbs, arXiv:2312.06795.
    Differs: the authors' code masks every row (last dimension) by itself, which is ``within: row``; the default ranks
        the whole tensor, as mergekit does. As in mergekit, ``density`` counts what is kept, fewer outliers are dropped
        where the density would not be reached, and density 1 drops nothing. Equal magnitudes rank in element order.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Share of the elements kept.
        gamma: Share of the elements dropped at the top.
        within: ``tensor`` or ``row``: where elements are ranked and counted.
        rescale: ``mergekit`` restores each pruned delta's sum of absolute values.
        normalize: Whether to divide by the sum of the weights (not where that is zero).
        lambda_: Factor of the merged delta.

    Returns:
        The merged delta.
    """
    return add_up(_banded(deltas, density, gamma, within, rescale), weights, normalize=normalize, lambda_=lambda_)


@_breadcrumbs("breadcrumbs_ties", title="Model breadcrumbs (TIES)", program=_ties_program)
def breadcrumbs_ties(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    within: Within = "tensor",
    rescale: NormRescale = "none",
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Prunes as `breadcrumbs` does, then elects a sign for each element as TIES does.

    Paper: arXiv:2312.06795 (pruning) and arXiv:2306.01708 (election).
    Differs: see `breadcrumbs`; as in mergekit, weights take part in the election.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Share of the elements kept.
        gamma: Share of the elements dropped at the top.
        within: ``tensor`` or ``row``: where elements are ranked and counted.
        rescale: ``mergekit`` restores each pruned delta's sum of absolute values.
        normalize: Whether to divide by the weights that agree.
        lambda_: Factor of the merged delta.

    Returns:
        The merged delta.
    """
    values = _banded(deltas, density, gamma, within, rescale)
    return elect_weighted(values, weights, normalize=normalize, lambda_=lambda_)
