"""Prunes, rescales and combines whole arrays: the code that TIES, DARE, breadcrumbs and DELLA share.

Each method drops a part of every delta, compensates for the dropped part, and then adds the deltas, or first elects a
sign for each element and averages those that agree. ``prune_program`` does the same over chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

import numpy as np

from mcompose.methods.core.arrays import as_kind, descending_order, doubles, ranks_in_rows, singles
from mcompose.methods.core.declare import PerSource, Range, Words
from mcompose.methods.core.randomness import uniforms

__all__ = [
    "Average",
    "Density",
    "NormRescale",
    "Rescale",
    "add_up",
    "band_ranks",
    "elect",
    "elect_weighted",
    "keep_at_least",
    "keep_random",
    "keep_ranked",
    "keep_ranks",
    "keep_row_ranks",
    "largest_ranks",
    "match_norm",
    "plain_divisor",
]

Density = Annotated[PerSource, Range(0.0, 1.0)]
"""Share of the elements to keep."""

Rescale = Annotated[Literal["paper", "mergekit", "none"], Words({True: "mergekit", False: "none"})]
"""How a random method compensates for dropped elements; true and false are mergekit's spelling."""

NormRescale = Annotated[Literal["mergekit", "none"], Words({True: "mergekit", False: "none"})]
"""Whether a magnitude method restores the sum of the absolute values, as mergekit can."""

Average = Literal["weights", "count", "none"]


def largest_ranks(size: int, density: float, *, at_least_one: bool = True) -> tuple[int, int]:
    """Returns the ranks to keep, counted from the largest: mergekit keeps at least one, PEFT may keep none.

    Args:
        size: Elements of the tensor.
        density: Share to keep.
        at_least_one: Whether a positive density keeps at least one element.

    Returns:
        First rank and end rank.
    """
    if density >= 1:
        return 0, size
    if density <= 0:
        return 0, 0
    return 0, min(size, max(1 if at_least_one else 0, int(density * size)))


def band_ranks(size: int, density: float, gamma: float) -> tuple[int, int]:
    """Returns the ranks to keep when the share ``gamma`` is dropped as outliers, and then the smallest elements.

    Fewer outliers are dropped if the density could not be reached otherwise; at density 1 nothing is dropped.

    Args:
        size: Elements of the tensor.
        density: Share to keep.
        gamma: Share to drop at the top.

    Returns:
        First rank and end rank, counted from the largest.
    """
    if density >= 1:
        return 0, size
    kept = int(density * size)
    first = min(int(gamma * size), size - kept)
    return first, first + kept


def keep_ranks(delta: Any, ranks: tuple[int, int]) -> Any:
    """Sets all elements to zero except some ranks of magnitude; ties rank in element order."""
    first, end = ranks
    mask = np.zeros(delta.size if isinstance(delta.size, int) else delta.numel(), np.float32)
    flat = as_kind(mask, delta)
    flat[descending_order(abs(delta).reshape(-1))[first:end]] = 1
    return delta * flat.reshape(delta.shape)


def keep_row_ranks(delta: Any, ranks: tuple[int, int]) -> Any:
    """Sets all elements of every row (last dimension) to zero except some ranks of magnitude.

    Args:
        delta: The delta.
        ranks: First rank and end rank, counted from the largest of a row; of equal ones, the later counts as larger.
    """
    row = delta.shape[-1] if delta.ndim else 1
    rows = delta.reshape(prod(delta.shape) // max(row, 1), row)
    places = ranks_in_rows(abs(rows))
    kept = (places >= row - ranks[1]) * (places < row - ranks[0])
    return delta * kept.reshape(delta.shape)


def keep_at_least(delta: Any, threshold: float) -> Any:
    """Sets elements with a magnitude below ``threshold`` to zero."""
    return delta * (abs(delta) >= threshold)


def keep_random(delta: Any, density: float, key: int) -> Any:
    """Keeps every element with probability ``density``."""
    return delta * (uniforms(key, delta) < np.float32(density).item())


def keep_ranked(delta: Any, density: float, epsilon: float, key: int) -> tuple[Any, Any]:
    """Keeps large elements of a row (last dimension) more often than small ones.

    Args:
        delta: The delta.
        density: Mean probability of keeping an element.
        epsilon: Half range: the smallest is kept with ``density - epsilon``, the largest with ``density + epsilon``.
        key: Address of the random numbers.

    Returns:
        The pruned delta, and the probability of every element.
    """
    row = delta.shape[-1] if delta.ndim else 1
    rows = delta.reshape(prod(delta.shape) // max(row, 1), row)
    low, span = np.float32(density) - np.float32(epsilon), np.float32(2) * np.float32(epsilon)
    last = rows.shape[1] - 1
    places = as_kind(np.full(rows.shape, 0.5, np.float32), delta)
    if last > 0:
        places = singles(ranks_in_rows(abs(rows))) / last
    chance = (float(low) + places * float(span)).reshape(delta.shape)
    return delta * (uniforms(key, delta) < chance), chance


def match_norm(kept: Any, delta: Any) -> Any:
    """Scales the kept elements so that the sum of absolute values is that of the delta."""
    before, after = float(doubles(abs(delta)).sum()), float(doubles(abs(kept)).sum())
    return kept * float(norm_ratio(before, after))


def norm_ratio(before: float, after: float) -> np.float32:
    """Returns the factor of ``match_norm``; 1 where a sum is below mergekit's 1e-7."""
    return np.float32(1.0 if before < 1e-7 or after < 1e-7 else before / after)


def plain_divisor(weights: Sequence[float], *, normalize: bool) -> float:
    """Returns the float32 sum of the weights, in order; 1 without ``normalize`` or for a zero sum, as in mergekit."""
    total = np.float32(0)
    for weight in weights:
        total = np.float32(total + np.float32(weight))
    return float(total) if normalize and abs(total) >= 1e-8 else 1.0


def add_up(values: Sequence[Any], weights: Sequence[float], *, normalize: bool, lambda_: float) -> Any:
    """Adds weighted deltas: sum_i w_i v_i (/ sum_i w_i) * lambda."""
    total = _weighted_sum(values, weights)
    return total / plain_divisor(weights, normalize=normalize) * np.float32(lambda_).item()


def elect(values: Sequence[Any], weights: Sequence[float], *, average: Average, weighted: bool, lambda_: float) -> Any:
    """Elects a sign for each element and combines the deltas that have it.

    Args:
        values: Pruned deltas.
        weights: One weight for each source.
        average: Divisor: the weights of the deltas that agree (``weights``), their ``count``, or ``none``.
        weighted: Whether deltas vote with their weights.
        lambda_: Factor of the result.

    Returns:
        The merged delta.
    """
    votes = [np.float32(weight).item() if weighted else 1.0 for weight in weights]
    positive = _weighted_sum(values, votes) >= 0
    mixed = share = values[0] * 0
    for value, weight, vote in zip(values, weights, votes, strict=True):
        sign_votes = vote * value
        agrees = ((sign_votes > 0) & positive) | ((sign_votes < 0) & ~positive)
        weight = np.float32(weight).item()
        mixed = mixed + weight * value * agrees
        share = share + (weight if average == "weights" else 1.0) * (agrees * (values[0] * 0 + 1))
    divisor = share + (share == 0) if average != "none" else 1.0
    return mixed / divisor * np.float32(lambda_).item()


def elect_weighted(values: Sequence[Any], weights: Sequence[float], *, normalize: bool, lambda_: float) -> Any:
    """Elects signs as mergekit does: weighted deltas vote; ``normalize`` divides by the weights of those that agree."""
    average: Average = "weights" if normalize else "none"
    return elect(values, weights, average=average, weighted=True, lambda_=lambda_)


def _weighted_sum(values: Sequence[Any], weights: Sequence[float]) -> Any:
    total = None
    for value, weight in zip(values, weights, strict=True):
        share = np.float32(weight).item() * value
        total = share if total is None else total + share
    return total
