"""Computes how many samples of each dataset an epoch has, and in which order, from seed and epoch alone.

Every dataset is an endless sequence of shuffles of its samples, each drawn from (seed, dataset, round). An epoch takes
its share of each sequence from where the last epoch stopped; so a small share does not repeat samples before all were
used, and a share larger than the dataset repeats it evenly. The epoch's own shuffle, drawn from (seed, epoch), mixes
the datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["apportion", "draw", "epoch_order", "proportions", "stream_generator", "within_quotas"]

_ORDER, _ROUND, _STREAM = 0, 1, 2  # purposes, so that no two shuffles share random numbers


def proportions(weights: Sequence[float], *, temperature: float = 1.0) -> np.ndarray:
    """Converts weights to probabilities: weight^(1/temperature), scaled to a sum of 1.

    Args:
        weights: Positive numbers, one per dataset.
        temperature: 1 keeps the proportions; a larger value makes them more even.

    Returns:
        The probabilities, float64.

    Paper:
        Temperature sampling of datasets, arXiv 1907.05019 (section 4.2).
    """
    logs = np.log(np.asarray(weights, dtype=np.float64)) / temperature
    powers = np.exp(logs - logs.max())
    return powers / powers.sum()


def apportion(probabilities: np.ndarray, *, total: int) -> np.ndarray:
    """Splits a total into whole counts; the largest remainders are rounded up, earlier ones first among equals.

    Args:
        probabilities: Proportions, which sum to 1.
        total: Sum of the counts.

    Returns:
        int64 counts.
    """
    exact = probabilities * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = total - int(counts.sum())
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts


def within_quotas(probabilities: np.ndarray, *, total: int, quotas: Sequence[int | None]) -> np.ndarray:
    """Splits a total into whole counts of which some have a limit; what they may not take goes to the others.

    Args:
        probabilities: Proportions, which sum to 1.
        total: Sum of the counts, if the limits allow it.
        quotas: Largest count of each; None for any.

    Returns:
        int64 counts: those without a limit, and those below theirs, keep their proportions.
    """
    counts = np.zeros(len(quotas), dtype=np.int64)
    free_N = np.ones(len(quotas), dtype=bool)
    limits = np.array([np.iinfo(np.int64).max if quota is None else quota for quota in quotas], dtype=np.int64)
    while free_N.any():
        rest = total - int(counts[~free_N].sum())
        shares = apportion(probabilities[free_N] / probabilities[free_N].sum(), total=rest)
        counts[free_N] = shares
        over_N = free_N & (counts > limits)
        if not over_N.any():
            break
        counts[over_N] = limits[over_N]
        free_N &= ~over_N
    return counts


def draw(position: int, *, size: int, seed: int, dataset: int) -> int:
    """Returns the sample at a position of a dataset's endless sequence.

    Args:
        position: Position in the sequence, over all epochs.
        size: Number of samples of the dataset.
        seed: Seed of the mixture.
        dataset: Number of the dataset.

    Returns:
        Number of the sample, 0 to ``size`` - 1.
    """
    turn, place = divmod(position, size)
    return int(_shuffle((seed, _ROUND, dataset, turn), size)[place])


def epoch_order(total: int, *, seed: int, epoch: int) -> np.ndarray:
    """Shuffles an epoch: returns which of its ``total`` slots comes at each place."""
    return _shuffle((seed, _ORDER, epoch), total)


def stream_generator(seed: int, epoch: int) -> np.random.Generator:
    """Makes the generator that chooses among streams in an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _STREAM, epoch))))


@lru_cache(maxsize=64)
def _shuffle(key: tuple[int, ...], size: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return generator.permutation(size)
