"""How much of each dataset an epoch holds, and in which order: arithmetic on counts, addressed by (seed, epoch).

Every dataset is an endless row of shuffles of its samples, each shuffle drawn from (seed, dataset, round). An epoch
takes the next so many from each row, so a dataset that is drawn from less than its size goes on where the last epoch
stopped, and one that is drawn from more is repeated evenly. The epoch's own shuffle, drawn from (seed, epoch), mixes
the datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["apportion", "draw", "epoch_order", "proportions", "stream_generator"]

_ORDER, _ROUND, _STREAM = 0, 1, 2  # what a shuffle is for, so that no two share their randomness


def proportions(weights: Sequence[float], *, temperature: float = 1.0) -> np.ndarray:
    """Weights to probabilities: weight^(1/temperature), scaled to a sum of 1.

    Args:
        weights: Positive numbers, one a dataset.
        temperature: 1 keeps the proportions, more evens them out.

    Returns:
        The probabilities, float64.

    Paper:
        Temperature sampling of datasets, arXiv 1907.05019 (section 4.2).
    """
    logs = np.log(np.asarray(weights, dtype=np.float64)) / temperature
    powers = np.exp(logs - logs.max())
    return powers / powers.sum()


def apportion(probabilities: np.ndarray, *, total: int) -> np.ndarray:
    """Whole counts in given proportions: the largest remainders are rounded up, the earlier first among equals.

    Args:
        probabilities: They sum to 1.
        total: What the counts sum to.

    Returns:
        int64 counts.
    """
    exact = probabilities * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = total - int(counts.sum())
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts


def draw(position: int, *, size: int, seed: int, dataset: int) -> int:
    """Returns the sample at a position of a dataset's endless row.

    Args:
        position: Position in the row, over all epochs.
        size: Samples of the dataset.
        seed: Seed of the mixture.
        dataset: Number of the dataset.

    Returns:
        Number of the sample, 0 to ``size`` - 1.
    """
    turn, place = divmod(position, size)
    return int(_shuffle((seed, _ROUND, dataset, turn), size)[place])


def epoch_order(total: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the shuffle of an epoch: which of its ``total`` slots comes at each place."""
    return _shuffle((seed, _ORDER, epoch), total)


def stream_generator(seed: int, epoch: int) -> np.random.Generator:
    """Yields what chooses among streams in an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _STREAM, epoch))))


@lru_cache(maxsize=64)
def _shuffle(key: tuple[int, ...], size: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return generator.permutation(size)
