"""Timing of a run: seconds by stage, summed over threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["STAGES", "Clock", "Phases", "Stage"]

STAGES = ("read", "compute", "hash", "write")
"""Stages of the work on weights."""


class Stage:
    """A stopwatch for one thread: ``with stage: ...`` adds the time inside the block."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


class Clock:
    """The stopwatches of one thread, one for each stage."""

    def __init__(self) -> None:
        self.read, self.compute, self.hash, self.write = Stage(), Stage(), Stage(), Stage()

    @staticmethod
    def total(clocks: Iterable[Clock]) -> dict[str, float]:
        """Returns seconds by stage, summed over threads."""
        watches = list(clocks)
        return {name: sum(getattr(clock, name).seconds for clock in watches) for name in STAGES}


class Phases:
    """Wall time of consecutive phases, in seconds: ``with phases("plan"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time inside the block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
