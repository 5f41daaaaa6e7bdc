"""Exact ranks of magnitude in O(1) memory: count bit patterns instead of sorting.

Level one counts the upper 15 bits of the keys (see `prune_kernels`) and finds the bin in which a rank lies;
level two counts the lower 16 bits inside that bin and finds the exact key. Both are sums of integers: any
order of chunks, and any number of tensors, gives the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcompose.methods import prune_kernels

__all__ = ["NOTHING_ABOVE", "RankFinder"]

NOTHING_ABOVE = 0x7FFFFFFF
"""A key that no finite magnitude reaches."""

ALL_ABOVE = -1
"""A key below every magnitude."""


class RankFinder:
    """Finds the keys that cut off the ``rank`` largest magnitudes.

    Args:
        ranks: How many elements shall lie above each cut; 0 and ``size`` need no counting.
        size: Elements in all.
    """

    passes = 2

    def __init__(self, ranks: Sequence[int], size: int) -> None:
        self.ranks = tuple(ranks)
        self.size = size
        self.high = np.zeros(32768, np.int64)
        self.bins: list[int | None] = []
        self.above: list[int] = []
        self.low: list[np.ndarray] = []

    def measure(self, index: int, values: np.ndarray) -> None:
        """Counts one chunk in pass 0 or 1."""
        if index == 0:
            prune_kernels.count_high_keys(values, self.high)
            return
        self._open_bins()
        for bin_, low in zip(self.bins, self.low, strict=True):
            if bin_ is not None:
                prune_kernels.count_low_keys(values, bin_, low)

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
        self._open_bins()
        bin_ = self.bins[which]
        assert bin_ is not None
        low, above = _bin_of(self.low[which], rank - self.above[which])
        return (bin_ << 16) | low, rank - self.above[which] - above

    def _open_bins(self) -> None:
        if self.bins:
            return
        for rank in self.ranks:
            inside = 0 < rank < self.size
            bin_, above = _bin_of(self.high, rank) if inside else (None, 0)
            self.bins.append(bin_)
            self.above.append(above)
            self.low.append(np.zeros(65536 if inside else 0, np.int64))


def _bin_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Finds the bin that holds the ``rank``-th largest, and the count above that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    bin_ = counts.size - 1 - place
    return bin_, int(from_top[place] - counts[bin_])
