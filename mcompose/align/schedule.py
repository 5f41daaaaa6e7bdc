"""Schedule of the learning rate over a stage."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["rate_factor"]


def rate_factor(kind: str, *, steps: int, warmup: int) -> Callable[[int], float]:
    """Returns the factor that the learning rates are multiplied by at each step.

    Args:
        kind: Shape after the warm-up: ``cosine``, ``linear`` or ``constant``.
        steps: Number of optimizer steps of the stage.
        warmup: Steps in which the factor rises from 0 to 1.

    Returns:
        Function from step, counted from 0, to factor.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1.0 - share if kind == "linear" else 1.0

    return factor
