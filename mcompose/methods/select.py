"""Exact ranks of magnitude in O(1) memory: count bit patterns instead of sorting.

Level one counts the upper 15 bits of the keys (see `loops.pruning`) and finds the bin in which a rank lies; level two
counts the lower 16 bits inside that bin and finds the exact key. Both are sums of integers: any order of chunks, and
any number of tensors and threads, gives the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcompose.methods import kernels
from mcompose.methods.loops.layout import COUNTERS, HIGH_BINS, LOW_BINS

__all__ = ["NOTHING_ABOVE", "RankFinder"]

NOTHING_ABOVE = 0x7FFFFFFF
"""A key that no finite magnitude reaches."""

ALL_ABOVE = -1
"""A key below every magnitude."""


class RankFinder:
    """Finds the keys that cut off the ``rank`` largest magnitudes of a delta.

    Args:
        ranks: How many elements shall lie above each cut; 0 and ``size`` need no counting.
        size: Elements in all.
    """

    passes = 2

    def __init__(self, ranks: Sequence[int], size: int) -> None:
        self.ranks = tuple(ranks)
        self.size = size
        self.high = np.zeros((COUNTERS, HIGH_BINS), np.int64)
        self.bins: list[int | None] = []
        self.above: list[int] = []
        self.low: list[np.ndarray] = []

    def measure(self, index: int, source: np.ndarray, base: np.ndarray | None = None) -> None:
        """Counts one chunk in pass 0 or 1."""
        if index == 0:
            kernels.count_high_keys(source, base, self.high)
            return
        self.open_bins()
        for bin_, low in zip(self.bins, self.low, strict=True):
            if bin_ is not None:
                kernels.count_low_keys(source, base, bin_, low)

    def open_bins(self) -> None:
        """Ends pass 0: finds the bins that pass 1 looks into."""
        if self.bins:
            return
        high = self.high.sum(0)
        for rank in self.ranks:
            inside = 0 < rank < self.size
            bin_, above = _bin_of(high, rank) if inside else (None, 0)
            self.bins.append(bin_)
            self.above.append(above)
            self.low.append(np.zeros(LOW_BINS if inside else 0, np.int64))

    def add(self, other: RankFinder) -> None:
        """Takes over what another finder of the same ranks has counted since it was made, or since `open_bins`."""
        if not self.bins:
            self.high += other.high
        for low, more in zip(self.low, other.low, strict=True):
            low += more

    def twin(self) -> RankFinder:
        """A finder of the same ranks with counters of its own, for another thread."""
        other = RankFinder(self.ranks, self.size)
        other.bins, other.above = list(self.bins), list(self.above)
        other.low = [np.zeros_like(low) for low in self.low]
        return other

    def cut(self, which: int) -> tuple[int, int]:
        """Gives the key of a cut.

        Args:
            which: Index into ``ranks``.

        Returns:
            The key, and how many of the elements equal to it, in element order, lie above the cut.
        """
        rank = self.ranks[which]
        if rank <= 0:
            return NOTHING_ABOVE, 0
        if rank >= self.size:
            return ALL_ABOVE, 0
        self.open_bins()
        bin_ = self.bins[which]
        assert bin_ is not None
        low, above = _bin_of(self.low[which], rank - self.above[which])
        return (bin_ << 16) | low, rank - self.above[which] - above


def _bin_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Finds the bin that holds the ``rank``-th largest, and the count above that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    bin_ = counts.size - 1 - place
    return bin_, int(from_top[place] - counts[bin_])
