"""Prune, rescale, combine over chunks: measuring passes for ranks and norms, then one that writes.

How a source is pruned is a `Cut`: a row of numbers for the kernels, and what must be measured before. The program runs
one cut a source and combines what is left; all of it happens in one kernel, tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from mcompose.methods.core import kernels
from mcompose.methods.core.loops.layout import (
    ADD_UP,
    CHANCES,
    CODE,
    COLUMNS,
    DIVIDE,
    DIVISOR,
    ELECT,
    ELECT_MEAN,
    HIGH,
    HIGH_TIES,
    KEEP_ALL,
    KEEP_BAND,
    KEEP_BY_CHANCE,
    KEEP_NONE,
    KEEP_RANDOM,
    KEY,
    LOW,
    LOW_TIES,
    NUMBERS,
    RATIO,
    SEEN_HIGH,
    SEEN_LOW,
    SHARE,
    TILE,
    VOTE,
    WEIGHT,
)
from mcompose.methods.core.prune import Average, norm_ratio, plain_divisor
from mcompose.methods.core.select import NOTHING_ABOVE, RankFinder

__all__ = [
    "Combination",
    "Cut",
    "KeepAll",
    "KeepAtLeast",
    "KeepNone",
    "KeepRandom",
    "KeepRanked",
    "KeepRanks",
    "KeepRowRanks",
    "PruneProgram",
]

Chunks = Sequence[np.ndarray]


class Cut:
    """Prunes the deltas of one source."""

    row = 1
    """Length of a row that must not be cut; 1 when any chunk will do."""

    @property
    def passes(self) -> int:
        """Measuring passes that are needed; may become fewer when one is over."""
        return 0

    def measure(self, index: int, source: np.ndarray, base: np.ndarray | None) -> None:
        """Looks at one chunk in measuring pass ``index``."""

    def write(self, row: np.ndarray) -> None:
        """Fills the kernels' row of numbers, once everything is measured."""
        raise NotImplementedError

    def prepare(self, row: np.ndarray, source: np.ndarray, base: np.ndarray | None) -> None:
        """Adds what belongs to the chunk that comes next."""


class KeepAll(Cut):
    """Drops nothing."""

    def write(self, row: np.ndarray) -> None:
        """Names itself."""
        row[CODE] = KEEP_ALL


class KeepNone(Cut):
    """Drops everything; a NaN stays one."""

    def write(self, row: np.ndarray) -> None:
        """Names itself."""
        row[CODE] = KEEP_NONE


class KeepRanks(Cut):
    """Keeps the magnitudes of some ranks, exactly; equal magnitudes rank in element order.

    Args:
        ranks: First rank and end rank, counted from the largest.
        size: Elements of the tensor.
    """

    def __init__(self, ranks: tuple[int, int], size: int) -> None:
        self.finder = RankFinder(ranks, size)

    @property
    def passes(self) -> int:
        """As many as the finder needs."""
        return self.finder.passes

    def measure(self, index: int, source: np.ndarray, base: np.ndarray | None) -> None:
        """Counts one chunk."""
        self.finder.measure(index, source, base)

    def write(self, row: np.ndarray) -> None:
        """Gives the keys of the two cuts."""
        row[CODE] = KEEP_BAND
        row[LOW], row[LOW_TIES] = self.finder.cut(1)
        row[HIGH], row[HIGH_TIES] = self.finder.cut(0)


class KeepAtLeast(Cut):
    """Keeps every magnitude from a key on.

    Args:
        key: Bit pattern of the smallest magnitude kept.
    """

    def __init__(self, key: int) -> None:
        self.key = key

    def write(self, row: np.ndarray) -> None:
        """Keeps what is above the key before this one."""
        row[CODE], row[LOW], row[HIGH] = KEEP_BAND, self.key - 1, NOTHING_ABOVE


class KeepRandom(Cut):
    """Keeps each element with one probability.

    Args:
        density: The probability.
        key: Address of the randomness.
    """

    def __init__(self, density: float, key: int) -> None:
        self.density = float(np.float32(density))
        self.key = key

    def write(self, row: np.ndarray) -> None:
        """Gives the draws that keep: the first of the 2^24 there are."""
        row[CODE], row[LOW] = KEEP_RANDOM, int(np.ceil(self.density * 2**24))
        row[KEY] = _signed(self.key)


class KeepRanked(Cut):
    """Keeps the large elements of a row more often than the small ones.

    Args:
        density: Mean probability.
        epsilon: How far the probability of the largest and of the smallest lie from the mean.
        key: Address of the randomness.
        row: Elements of a row.
        divide: Whether what is kept is divided by its probability.
    """

    def __init__(self, density: float, epsilon: float, *, key: int, row: int, divide: bool) -> None:
        self.low = float(np.float32(density) - np.float32(epsilon))
        self.span = float(np.float32(2) * np.float32(epsilon))
        self.key = key
        self.row = max(1, row)
        self.divide = divide
        self.probabilities = np.empty(0, np.float32)

    def write(self, row: np.ndarray) -> None:
        """Names itself; the probabilities are added for each chunk."""
        row[CODE], row[KEY], row[DIVIDE] = KEEP_BY_CHANCE, _signed(self.key), int(self.divide)

    def prepare(self, row: np.ndarray, source: np.ndarray, base: np.ndarray | None) -> None:
        """Ranks the chunk's rows."""
        if self.probabilities.size < source.size:
            self.probabilities = np.empty(source.size, np.float32)
        kernels.rank_probabilities(
            source, base, length=self.row, low=self.low, span=self.span, out=self.probabilities[: source.size]
        )
        row[CHANCES] = self.probabilities.ctypes.data


class KeepRowRanks(Cut):
    """Keeps the magnitudes of some ranks of every row; of equal ones, the later counts as larger.

    Args:
        ranks: First rank and end rank, counted from the largest of the row.
        row: Elements of a row.
    """

    def __init__(self, ranks: tuple[int, int], *, row: int) -> None:
        self.ranks, self.row = ranks, max(1, row)
        self.kept = np.empty(0, np.float32)

    def write(self, row: np.ndarray) -> None:
        """Names itself; elements are kept with a probability of one or zero."""
        row[CODE], row[KEY], row[DIVIDE] = KEEP_BY_CHANCE, 0, 0

    def prepare(self, row: np.ndarray, source: np.ndarray, base: np.ndarray | None) -> None:
        """Ranks the chunk's rows."""
        if self.kept.size < source.size:
            self.kept = np.empty(source.size, np.float32)
        kept = self.kept[: source.size]
        kernels.rank_probabilities(source, base, length=self.row, low=0.0, span=1.0, out=kept)
        first, end = self.ranks
        places = np.rint(kept * np.float32(self.row - 1))  # back to whole ranks, from the smallest up
        kept[:] = (places >= self.row - end) & (places < self.row - first)
        row[CHANCES] = self.kept.ctypes.data


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

    def code(self) -> int:
        """What the kernels call it."""
        if not self.elected:
            return ADD_UP
        return ELECT if self.average == "none" else ELECT_MEAN

    def numbers(self) -> np.ndarray:
        """What each source is worth in the vote, in the sum and in the divisor, shape (sources, NUMBERS)."""
        weights = np.asarray(self.weights, np.float32)
        ones = np.ones_like(weights)
        table = np.ones((weights.size, NUMBERS), np.float32)
        table[:, VOTE] = weights if self.weighted else ones
        table[:, WEIGHT] = weights
        table[:, SHARE] = weights if self.average == "weights" else ones
        return table


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
        numbers = combination.numbers()
        if divisors is not None:
            numbers[:, DIVISOR] = divisors
        divisor = 1.0 if combination.elected else combination.divisor
        table = np.zeros((len(cuts), COLUMNS), np.int64)
        self.pruning = kernels.Pruning(table, numbers, combination.code(), divisor, combination.scale)
        self.chunk_multiple = lcm(TILE, *(cut.row for cut in cuts))
        self.norms = np.zeros((len(cuts) if match_norm else 0, 2))

    @property
    def passes(self) -> int:
        """Those of the cuts, then one for the norms."""
        return self._ranking() + (1 if len(self.norms) else 0)

    def _ranking(self) -> int:
        return max(cut.passes for cut in self.cuts)

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> bool:
        """Ranks in the first passes, norms in the last."""
        if index < self._ranking():
            for cut, source in zip(self.cuts, sources, strict=True):
                if index < cut.passes:
                    cut.measure(index, source, base)
            return True
        if not len(self.norms):
            return True
        if start == 0:
            self._write_cuts()
            self.norms[:] = 0
        self._prepare(sources, base)
        kernels.abs_sums(sources, base, self.pruning.cuts, self.norms, start=start)
        return bool(np.isfinite(self.norms).all())

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> int:
        """Prunes and combines one chunk."""
        if start == 0:
            self._write_cuts()
            if len(self.norms):
                self.pruning.numbers[:, RATIO] = [norm_ratio(before, after) for before, after in self.norms]
        self._prepare(sources, base)
        return kernels.prune_and_sum(sources, self.pruning, out, base=base, start=start)

    def _prepare(self, sources: Chunks, base: np.ndarray | None) -> None:
        for cut, row, source in zip(self.cuts, self.pruning.cuts, sources, strict=True):
            cut.prepare(row, source, base)

    def _write_cuts(self) -> None:
        for cut, row in zip(self.cuts, self.pruning.cuts, strict=True):
            cut.write(row)
        self.pruning.cuts[:, [SEEN_LOW, SEEN_HIGH]] = 0


def _signed(key: int) -> int:
    """A 64-bit key as the kernels' tables hold it."""
    return key - (1 << 64) if key >> 63 else key
