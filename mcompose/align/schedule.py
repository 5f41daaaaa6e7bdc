"""In which order samples are seen, and how the learning rate moves: pure functions of seed and position.

The order of a whole stage is laid out before it starts, so that nothing depends on the number of processes or on where
a run was interrupted: step k always takes the same samples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ordered", "rate_factor", "sample_order"]


def sample_order(count: int, *, total: int, seed: int) -> NDArray[np.int64]:
    """Indices of all samples of a stage, in order: one permutation after the other.

    Args:
        count: Samples of the mixture.
        total: Samples of the stage.
        seed: The stage's seed.

    Returns:
        ``total`` indices below ``count``.
    """
    rounds = []
    for number in range(-(-total // count)):
        generator = np.random.default_rng([seed, zlib.crc32(b"order"), number])
        rounds.append(generator.permutation(count))
    return np.concatenate(rounds)[:total].astype(np.int64)


class Ordered:
    """A map-style dataset: the samples of a mixture in the order of a stage, each with its position.

    Args:
        mixture: Anything with ``__getitem__``.
        order: Index into the mixture for every position.
    """

    def __init__(self, mixture: Any, order: Sequence[int] | NDArray[np.int64]) -> None:
        self._mixture = mixture
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return position, self._mixture[int(self._order[position])]


def rate_factor(kind: str, *, steps: int, warmup: int) -> Callable[[int], float]:
    """What the learning rates are multiplied by at each step.

    Args:
        kind: ``cosine``, ``linear`` or ``constant``.
        steps: Optimizer steps of the stage.
        warmup: Steps in which the factor rises from 0 to 1.

    Returns:
        Step, counted from 0, to factor.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1.0 - share if kind == "linear" else 1.0

    return factor
