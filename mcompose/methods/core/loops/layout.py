"""What the loops and their callers agree on: codes, sizes, and the columns of small tables."""

from __future__ import annotations

__all__ = [
    "ADD_UP", "BF16", "CHANCES", "CODE", "COLUMNS", "COUNTERS", "DIVIDE", "DIVISOR", "ELECT", "ELECT_MEAN", "F16",
    "F32", "F64", "HIGH", "HIGH_BINS", "HIGH_TIES", "KEEP_ALL", "KEEP_BAND", "KEEP_BY_CHANCE", "KEEP_NONE",
    "KEEP_RANDOM", "KEY", "LANES", "LOW", "LOW_BINS", "LOW_TIES", "NUMBERS", "RATIO", "SEEN_HIGH", "SEEN_LOW",
    "SHARE", "TILE", "VOTE", "WEIGHT", "WINDOW",
]  # fmt: skip

BF16, F16, F32, F64 = 0, 1, 2, 3
"""Codes of the element types."""

TILE = 2048
"""Elements that stay in the first-level cache from widening to rounding; sums and draws count by it."""

LANES = 32
"""Running sums in a tile."""

HIGH_BINS, LOW_BINS = 32768, 65536
"""Counters for the upper 15 bits of a magnitude's key, and for the lower 16."""

WINDOW = 3
"""Bins of upper bits in which lower bits are counted ahead of need: the one that a rank is thought to be in, and its
neighbours."""

COUNTERS = 4
"""Tables that take turns in counting, so that equal neighbours do not wait for each other's sum."""

KEEP_ALL, KEEP_NONE, KEEP_BAND, KEEP_RANDOM, KEEP_BY_CHANCE = 0, 1, 2, 3, 4
"""Codes of the ways to prune."""

ADD_UP, ELECT, ELECT_MEAN = 0, 1, 2
"""Codes of the ways to combine: the sum of all, the sum of those that have the elected sign, their mean."""

CODE, LOW, LOW_TIES, HIGH, HIGH_TIES, SEEN_LOW, SEEN_HIGH, KEY, CHANCES, DIVIDE = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
COLUMNS = 10
"""Columns of the table of cuts (int64): see `pruning`."""

RATIO, DIVISOR, VOTE, WEIGHT, SHARE = 0, 1, 2, 3, 4
NUMBERS = 5
"""Columns of the table of what each source is worth (float32)."""
