"""Ratios of two tools, round by round, with their spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median and range of the ratios of n rounds, and the ratio of the two best runs."""

    median: float
    low: float
    high: float
    best: float
    n: int

    def __str__(self) -> str:
        """Returns a text such as ``8.1 (7.9 to 8.6)``."""
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Divides round by round.

    Args:
        over: One figure per round.
        under: The other tool's figures of the same rounds. If one tool ran in fewer rounds, its last run is used for
            the missing ones.

    Returns:
        The spread of the quotients. ``best`` divides the smallest figures: the least disturbed run of each.
    """
    rounds = range(max(len(over), len(under)))
    quotients = [over[min(k, len(over) - 1)] / under[min(k, len(under) - 1)] for k in rounds]
    best = min(over) / min(under)
    return Ratio(statistics.median(quotients), min(quotients), max(quotients), best, len(quotients))
