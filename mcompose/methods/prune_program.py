"""Prune, rescale, combine over chunks: measuring passes for ranks and norms, then one that writes.

A `Cut` prunes one source: it may look at the deltas in measuring passes, and then zeroes a chunk in place.
The program runs one cut a source and combines what is left, piece by piece, so that memory stays O(piece)
for any tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mcompose.methods import kernels, prune_kernels
from mcompose.methods.blend_program import PIECE
from mcompose.methods.prune import Average, norm_ratio, plain_divisor
from mcompose.methods.select import NOTHING_ABOVE, RankFinder

__all__ = [
    "Combination",
    "Cut",
    "KeepAll",
    "KeepAtLeast",
    "KeepNone",
    "KeepRandom",
    "KeepRanked",
    "KeepRanks",
    "PruneProgram",
]

Chunks = Sequence[np.ndarray]


class Cut(Protocol):
    """Prunes the deltas of one source."""

    passes: int
    row: int
    """Length of a row that must not be cut; 1 when any piece will do."""

    def measure(self, index: int, delta: np.ndarray) -> None:
        """Looks at one piece in measuring pass ``index``."""
        ...

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Zeroes what is dropped; pieces come in element order, and ``start`` 0 begins anew."""
        ...


class KeepAll:
    """Drops nothing."""

    passes = 0
    row = 1

    def measure(self, index: int, delta: np.ndarray) -> None:
        """Has nothing to learn."""

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Changes nothing."""


class KeepNone(KeepAll):
    """Drops everything; a NaN stays one."""

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Zeroes the piece."""
        delta *= np.float32(0)


class KeepRanks(KeepAll):
    """Keeps the magnitudes of some ranks, exactly; equal magnitudes rank in element order.

    Args:
        ranks: First rank and end rank, counted from the largest.
        size: Elements of the tensor.
    """

    def __init__(self, ranks: tuple[int, int], size: int) -> None:
        self.finder = RankFinder(ranks, size)
        self.passes = 2 if any(0 < rank < size for rank in ranks) else 0
        self.seen = np.zeros(2, np.int64)
        self.cuts: tuple[int, int, int, int] | None = None

    def measure(self, index: int, delta: np.ndarray) -> None:
        """Counts one piece."""
        self.finder.measure(index, delta)

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Keeps what lies between the two cuts."""
        if self.cuts is None:
            self.cuts = (*self.finder.cut(1), *self.finder.cut(0))
        if start == 0:
            self.seen[:] = 0
        prune_kernels.keep_band(delta, *self.cuts, self.seen)


class KeepAtLeast(KeepAll):
    """Keeps every magnitude from a key on.

    Args:
        key: Bit pattern of the smallest magnitude kept.
    """

    def __init__(self, key: int) -> None:
        self.key = key
        self.seen = np.zeros(2, np.int64)

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Keeps what is above the key before this one."""
        prune_kernels.keep_band(delta, self.key - 1, 0, NOTHING_ABOVE, 0, self.seen)


class KeepRandom(KeepAll):
    """Keeps each element with one probability.

    Args:
        density: The probability.
        key: Address of the randomness.
    """

    def __init__(self, density: float, key: int) -> None:
        self.density = np.float32(density)
        self.key = np.uint64(key)
        self.scratch = _Scratch()

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Draws for every element."""
        (draws,) = self.scratch.rows(1, delta.size)
        prune_kernels.uniforms(self.key, start, draws)
        prune_kernels.keep_random(delta, draws, self.density)


class KeepRanked(KeepAll):
    """Keeps the large elements of a row more often than the small ones.

    Args:
        density: Mean probability.
        epsilon: How far the probability of the largest and of the smallest lie from the mean.
        key: Address of the randomness.
        row: Elements of a row.
        divide: Whether what is kept is divided by its probability.
    """

    def __init__(self, density: float, epsilon: float, *, key: int, row: int, divide: bool) -> None:
        self.density, self.epsilon = np.float32(density), np.float32(epsilon)
        self.key = np.uint64(key)
        self.row = max(1, row)
        self.divide = divide
        self.scratch = _Scratch()

    def apply(self, start: int, delta: np.ndarray) -> None:
        """Draws for every element of whole rows."""
        draws, chances = self.scratch.rows(2, delta.size)
        prune_kernels.uniforms(self.key, start, draws)
        low, span = self.density - self.epsilon, np.float32(2) * self.epsilon
        prune_kernels.rank_chances(delta, self.row, low, span, chances)
        prune_kernels.keep_by_chance(delta, draws, chances)
        if self.divide:
            np.divide(delta, chances, out=delta)


@dataclass(frozen=True)
class Combination:
    """How pruned deltas become one.

    Args:
        weights: One a source.
        elected: Whether a sign is elected for each element.
        weighted: Whether the vote is on weighted deltas.
        average: What the elected sum is divided by.
        divisor: What the plain sum is divided by.
        scale: Lambda.
    """

    weights: Sequence[float]
    elected: bool = False
    weighted: bool = True
    average: Average = "none"
    divisor: float = 1.0
    scale: float = 1.0

    @classmethod
    def added_up(cls, weights: Sequence[float], *, normalize: bool, lambda_: float) -> Combination:
        """The weighted sum, as `prune.add_up` makes it."""
        return cls(weights, divisor=plain_divisor(weights, normalize=normalize), scale=lambda_)

    @classmethod
    def by_election(cls, weights: Sequence[float], *, normalize: bool, lambda_: float) -> Combination:
        """The weighted sum of those that have the elected sign; normalised, their mean."""
        return cls(weights, elected=True, average="weights" if normalize else "none", scale=lambda_)

    def shares(self) -> np.ndarray:
        """Weight of each source in the vote, in the sum and in the divisor, shape (sources, 3)."""
        weights = np.asarray(self.weights, np.float32)
        ones = np.ones_like(weights)
        parts = {"weights": weights, "count": ones, "none": 0 * ones}[self.average]
        return np.stack([weights if self.weighted else ones, weights, parts], axis=1)


class PruneProgram:
    """Prunes every source, makes up for it, and combines.

    Args:
        cuts: One a source.
        combination: How the pruned deltas become one.
        match_norm: Whether each pruned delta is scaled back to its sum of absolute values.
        divisors: What each pruned delta is divided by, one a source.
    """

    def __init__(
        self,
        cuts: Sequence[Cut],
        combination: Combination,
        *,
        match_norm: bool = False,
        divisors: Sequence[float] | None = None,
    ) -> None:
        self.cuts = cuts
        self.combination = combination
        self.weights = np.asarray(combination.weights, np.float32)
        self.shares = combination.shares()
        self.divisors = np.asarray(divisors if divisors is not None else [1.0] * len(cuts), np.float32)
        self.ratios = np.ones(len(cuts), np.float32) if not match_norm else None
        self.select_passes = max(cut.passes for cut in cuts)
        self.passes = self.select_passes + (1 if match_norm else 0)
        self.chunk_multiple = max(cut.row for cut in cuts)
        self.scratch = _Scratch()
        self.sums = [_AbsSum() for _ in range(2 * len(cuts))]

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> None:
        """Ranks in the first passes, norms in the last."""
        for piece in self._pieces(sources[0].size):
            scratch = self.scratch.rows(1, piece.stop - piece.start)[0]
            for number, source in enumerate(sources):
                delta = _delta(source[piece], base, piece, scratch)
                if index < self.select_passes:
                    if index < self.cuts[number].passes:
                        self.cuts[number].measure(index, delta)
                    continue
                place = start + piece.start
                self.sums[2 * number].add(place, delta)
                self.cuts[number].apply(place, delta)
                self.sums[2 * number + 1].add(place, delta)

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        """Prunes and combines one chunk."""
        if self.ratios is None:
            totals = [norm.total() for norm in self.sums]
            self.ratios = np.array([norm_ratio(*pair) for pair in zip(totals[::2], totals[1::2], strict=True)])
        for piece in self._pieces(out.size):
            values = self.scratch.rows(len(sources), piece.stop - piece.start)
            for number, source in enumerate(sources):
                _delta(source[piece], base, piece, values[number])
                self.cuts[number].apply(start + piece.start, values[number])
                if self.ratios[number] != 1:
                    values[number] *= self.ratios[number]
                if self.divisors[number] != 1:
                    values[number] /= self.divisors[number]
            origin = np.zeros(values.shape[1], np.float32) if base is None else base[piece]
            self._combine(values, origin, out[piece])

    def _combine(self, values: np.ndarray, base: np.ndarray, out: np.ndarray) -> None:
        how = self.combination
        if how.elected:
            prune_kernels.elect(values, self.shares, how.scale, base, out)
        else:
            prune_kernels.add_up(values, self.weights, how.divisor, how.scale, base, out)

    def _pieces(self, size: int) -> list[slice]:
        step = max(1, PIECE // self.chunk_multiple) * self.chunk_multiple
        return [slice(first, min(size, first + step)) for first in range(0, size, step)]


class _AbsSum:
    """A float64 sum of absolute values whose order does not depend on the cut into chunks."""

    def __init__(self) -> None:
        self.lanes = np.zeros(kernels.LANES)
        self.sum = np.zeros(1)

    def add(self, start: int, values: np.ndarray) -> None:
        prune_kernels.abs_lanes(values, start, self.lanes, self.sum)

    def total(self) -> float:
        left = 0.0
        for lane in self.lanes:
            left += lane
        return float(self.sum[0] + left)


class _Scratch:
    """Memory that is used again: fresh memory for every piece would cost more than the arithmetic on it."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.float32)

    def rows(self, count: int, length: int) -> np.ndarray:
        """Gives a contiguous array of ``count`` rows; its content is anything."""
        if self.memory.size < count * length:
            self.memory = np.empty(count * length, np.float32)
        return self.memory[: count * length].reshape(count, length)


def _delta(source: np.ndarray, base: np.ndarray | None, piece: slice, out: np.ndarray) -> np.ndarray:
    return np.subtract(source, 0 if base is None else base[piece], out=out)
