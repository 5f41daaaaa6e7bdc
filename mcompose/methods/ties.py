"""TIES, three dialects: mergekit's, PEFT's, and the authors' global threshold (see `ties_global`)."""

from __future__ import annotations

from math import prod
from typing import Any

from mcompose.methods.core.declare import PerSource, Weights, each, method
from mcompose.methods.core.method import Program, TensorTask
from mcompose.methods.core.prune import (
    Density,
    NormRescale,
    elect,
    elect_weighted,
    keep_ranks,
    largest_ranks,
    match_norm,
)
from mcompose.methods.core.prune_program import Combination, KeepRanks, PruneProgram

__all__ = ["ties", "ties_peft"]


def _ties_program(
    task: TensorTask,
    *,
    weights: Weights,
    density: PerSource,
    normalize: bool,
    rescale: str,
    lambda_: float,
) -> Program:
    size = prod(task.shape)
    return PruneProgram(
        [KeepRanks(largest_ranks(size, share), size) for share in each(density, len(task.sources))],
        Combination.by_election(weights, normalize=normalize, lambda_=lambda_),
        match_norm=rescale == "mergekit",
    )


def _peft_program(task: TensorTask, *, weights: Weights, density: PerSource) -> Program:
    size = prod(task.shape)
    shares = each(density, len(task.sources))
    return PruneProgram(
        [KeepRanks(largest_ranks(size, share, at_least_one=False), size) for share in shares],
        Combination(weights, elected=True, weighted=False, average="count"),
    )


@method(
    "ties",
    title="TIES (mergekit's dialect)",
    paper="arXiv:2306.01708",
    space="deltas",
    base="required",
    program=_ties_program,
    mergekit_ignored=("int8_mask",),
)
def ties(
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    normalize: bool = True,
    rescale: NormRescale = "none",
    lambda_: float = 1.0,
) -> Any:
    """Trims every delta to its largest elements, elects a sign for each element, averages those that agree.

    Paper: TIES-Merging, arXiv:2306.01708.
    Differs: as mergekit does, the threshold is per tensor, weights take part in the election, and the mean
        divides by the agreeing weights. From mergekit: equal magnitudes at the threshold are kept in
        element order, where its unstable sort keeps arbitrary ones. The paper's own rule is `ties-global`.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Share of the elements kept; a positive share keeps one at least.
        normalize: Whether to divide by the weights that agree.
        rescale: ``mergekit`` restores each trimmed delta's sum of absolute values.
        lambda_: Factor of the merged delta.

    Returns:
        The merged delta.
    """
    kept = []
    for delta, share in zip(deltas, each(density, len(deltas)), strict=True):
        trimmed = keep_ranks(delta, largest_ranks(_size(delta), share))
        kept.append(match_norm(trimmed, delta) if rescale == "mergekit" else trimmed)
    return elect_weighted(kept, weights, normalize=normalize, lambda_=lambda_)


@method(
    "ties-peft",
    title="TIES (PEFT's dialect)",
    paper="arXiv:2306.01708",
    space="deltas",
    base="required",
    program=_peft_program,
)
def ties_peft(deltas: Any, *, weights: Weights, density: Density = 1.0) -> Any:
    """Trims every delta, elects signs by the unweighted sum, divides by the number of sources that agree.

    Paper: TIES-Merging, arXiv:2306.01708.
    Differs: as in PEFT, the threshold is per tensor and weights scale the deltas after the election; a
        small density may keep nothing. One density a source is allowed.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Share of the elements kept.

    Returns:
        The merged delta.
    """
    kept = [
        keep_ranks(delta, largest_ranks(_size(delta), share, at_least_one=False))
        for delta, share in zip(deltas, each(density, len(deltas)), strict=True)
    ]
    return elect(kept, weights, average="count", weighted=False, lambda_=1.0)


def _size(delta: Any) -> int:
    return prod(delta.shape)
