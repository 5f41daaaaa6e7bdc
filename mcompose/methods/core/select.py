"""Exact ranks of magnitude in O(1) memory: count bit patterns instead of sorting.

A magnitude's upper 15 bits say in which *bin* it is, its lower 16 where in the bin. Pass 0 counts the bins, which tells
the bin of a rank; pass 1 counts the lower bits inside that bin, which tells the exact key. All are sums of integers:
any order of chunks, and any number of tensors and threads, gives the same answer.

Most tensors need no pass 1: the first chunk tells near which bin the rank will be, and from then on the lower bits of
that bin and its neighbours are counted along. Where the guess was wrong, pass 1 is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcompose.methods.core import kernels
from mcompose.methods.core.loops.layout import COUNTERS, HIGH_BINS, LOW_BINS, WINDOW

__all__ = ["NOTHING_ABOVE", "RankFinder"]

NOTHING_ABOVE = 0x7FFFFFFF
"""A key that no finite magnitude reaches."""

ALL_ABOVE = -1
"""A key below every magnitude."""

MOST_RANKS = 2


class RankFinder:
    """Finds the keys that cut off the ``rank`` largest magnitudes of a delta.

    Args:
        ranks: How many elements shall lie above each cut, two at most; 0 and ``size`` need no counting.
        size: Elements in all.
        guess: Whether to guess the bins from the first chunk; not for finders whose counts are added up.
    """

    def __init__(self, ranks: Sequence[int], size: int, *, guess: bool = True) -> None:
        assert len(ranks) <= MOST_RANKS
        self.ranks = tuple(ranks)
        self.size = size
        self.guess = guess
        self.seen = 0
        self.inner = [which for which, rank in enumerate(self.ranks) if 0 < rank < size]
        self.high = np.zeros((COUNTERS, HIGH_BINS), np.int64)
        self.low = np.zeros((MOST_RANKS, WINDOW, LOW_BINS), np.int64)
        self.windows = np.full(MOST_RANKS, -1, np.int64)
        self.found: dict[int, tuple[int, int]] | None = None
        self.second: bool | None = None
        """Whether pass 1 is made; None before it is known."""

    @property
    def passes(self) -> int:
        """How many are needed; 2 at first, and 1 when pass 0 is over and the guess was right."""
        if not self.inner:
            return 0
        over = self.seen >= self.size and not self.second
        return 1 if over and self._is_guessed() else 2

    def measure(self, index: int, source: np.ndarray, base: np.ndarray | None = None) -> None:
        """Counts one chunk in pass 0 or 1."""
        if index == 0:
            self._count(source, base)
            return
        self.open_bins()
        if self.second:
            kernels.count_keys(source, base, high=None, windows=self.windows, low=self.low)

    def _count(self, source: np.ndarray, base: np.ndarray | None) -> None:
        kernels.count_keys(source, base, high=self.high, windows=self.windows, low=self.low)
        if self.guess and self.seen == 0 and source.size:
            high = self.high.sum(0)
            for which in self.inner:
                rank = max(1, round(self.ranks[which] / self.size * source.size))
                self.windows[which] = _window(_bin_of(high, rank)[0])
            kernels.count_keys(source, base, high=None, windows=self.windows, low=self.low)
        self.seen += source.size

    def open_bins(self) -> None:
        """Ends pass 0: finds the bins that pass 1 looks into, if it is needed."""
        if self.second is not None:
            return
        self.second = bool(self.inner) and not self._is_guessed()
        if self.second:
            self.low[:] = 0
            for which, (bin_, _) in self._bins().items():
                self.windows[which] = _window(bin_)

    def _bins(self) -> dict[int, tuple[int, int]]:
        """Inner rank to its bin and the count above the bin; pass 0 must be over."""
        if self.found is None:
            high = self.high.sum(0)
            self.found = {which: _bin_of(high, self.ranks[which]) for which in self.inner}
        return self.found

    def _is_guessed(self) -> bool:
        found = self._bins().items()
        return self.guess and all(0 <= bin_ - self.windows[which] < WINDOW for which, (bin_, _) in found)

    def twin(self) -> RankFinder:
        """A finder of the same ranks with counters of its own, for another thread."""
        other = RankFinder(self.ranks, self.size, guess=False)
        other.windows[:] = self.windows
        other.found, other.second = self.found, self.second
        return other

    def add(self, other: RankFinder) -> None:
        """Takes over what a twin has counted."""
        if self.second is None:
            self.high += other.high
        else:
            self.low += other.low

    def cut(self, which: int) -> tuple[int, int]:
        """Gives the key of a cut.

        Args:
            which: Index into ``ranks``.

        Returns:
            The key, and how many of the elements equal to it, in element order, lie above the cut.
        """
        rank = self.ranks[which]
        if which not in self.inner:
            return (NOTHING_ABOVE if rank <= 0 else ALL_ABOVE), 0
        bin_, above = self._bins()[which]
        low, above_low = _bin_of(self.low[which, bin_ - self.windows[which]], rank - above)
        return (bin_ << 16) | low, rank - above - above_low


def _window(bin_: int) -> int:
    """First bin of the window around a bin."""
    return min(max(bin_ - WINDOW // 2, 0), HIGH_BINS - WINDOW)


def _bin_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Finds the bin that holds the ``rank``-th largest, and the count above that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    bin_ = counts.size - 1 - place
    return bin_, int(from_top[place] - counts[bin_])
