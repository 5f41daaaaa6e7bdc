"""Progress of long tasks: the protocol for callers, and the command line's progress bar.

Progress is written to stderr, so that stdout contains results only. The bar is silent with ``quiet`` (``--quiet``) and
when stderr is not a terminal; a task of hours may then write a line from time to time instead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

__all__ = ["OnCount", "OnShare", "Progress", "ProgressBar", "SharedProgress", "remark", "track"]

T = TypeVar("T")

OnCount = Callable[[str, int, int], None]
"""Callback with the name of a task, the number of units done, and the total number of units."""

OnShare = Callable[[str, float], None]
"""Callback with the current activity, and the share of the whole work that is done, 0 to 1."""

LINE_SECONDS = 15.0
"""Seconds between two lines of a long task where stderr is not a terminal."""

_SHARE_LAYOUT = "{desc} {percentage:3.0f} %|{bar}| {elapsed} < {remaining} {postfix}"


class Progress(Protocol):
    """Receiver of a task's progress; called from one thread at a time."""

    def start(self, total: int, done: int, /) -> None:
        """Begins a task of ``total`` units, of which an earlier run has done ``done``."""
        ...

    def advance(self, amount: int, /) -> None:
        """Reports units done since the last call."""
        ...

    def finish(self) -> None:
        """Ends the task, completed or not."""
        ...


class ProgressBar:
    """Progress bar with speed and time left on a terminal; elsewhere silent, or a line from time to time.

    Args:
        label: Text before the bar.
        unit: Unit that is counted, in the singular; ``B`` is shown as kB, MB and so on, ``%`` is a share from 0 to 1.
        quiet: Whether to show nothing, even on a terminal.
        every: Seconds between two lines when stderr is not a terminal; None does not write lines.
        leave: Whether the bar stays on the screen after the task.
    """

    def __init__(
        self,
        label: str = "",
        *,
        unit: str = "B",
        quiet: bool = False,
        every: float | None = None,
        leave: bool = True,
    ) -> None:
        self.label = label
        self._unit, self._quiet, self._every, self._leave = unit, quiet, every, leave
        self._bar: Any = None
        self._total = self._first = self._done = 0.0
        self._began = self._written = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether nothing will be shown, so that callers can skip work that only the bar needs."""
        return self._quiet or (self._every is None and not sys.stderr.isatty())

    def start(self, total: float, done: float = 0, *, label: str | None = None) -> None:
        """Begins a task; a running one is finished first.

        Args:
            total: Units of the whole task.
            done: Units that an earlier run has done; they do not count towards the speed.
            label: Text before the bar from now on; None keeps the label.
        """
        self.finish()
        self.label = self.label if label is None else label
        self._total, self._first, self._done = total, done, done
        self._began = self._written = time.monotonic()
        if self._quiet or not sys.stderr.isatty():
            return
        from tqdm import tqdm  # noqa: PLC0415 - imported only for a visible bar

        layout: Any = {"bar_format": _SHARE_LAYOUT} if self._unit == "%" else {"unit_scale": self._unit == "B"}
        self._bar = tqdm(
            total=total,
            initial=done,  # pyright: ignore[reportArgumentType] - tqdm accepts a float too
            desc=self.label,
            unit=self._unit,
            file=sys.stderr,
            leave=self._leave,
            dynamic_ncols=True,
            **layout,
        )

    def advance(self, amount: float) -> None:
        """Reports units done since the last call."""
        self.move_to(self._done + amount)

    def move_to(self, done: float, note: str = "") -> None:
        """Reports the number of units done in total.

        Args:
            done: Units done, including those of an earlier run.
            note: Text after the bar, such as the last loss.
        """
        step, self._done = done - self._done, done
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=not step)
            self._bar.update(step)
        elif self._every is not None and not self.is_silent:
            self._write_line(note)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Closes the bar; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_line(self, note: str) -> None:
        now = time.monotonic()
        if now - self._written < (self._every or 0) and self._done != self._total:
            return
        self._written = now
        left = (now - self._began) / max(self._done - self._first, 1) * (self._total - self._done)
        parts = [f"{self.label}: {self._done:g} of {self._total:g} {self._unit}s"]
        parts += [note] if note else []
        parts += [f"{left:.0f} s left"] if left >= 1 else []
        sys.stderr.write(", ".join(parts) + "\n")


def track(
    items: Iterable[T], *, label: str, total: int, unit: str, quiet: bool = False, every: float = LINE_SECONDS
) -> Iterator[T]:
    """Yields items and shows how many are done.

    Args:
        items: The items.
        label: Text before the bar.
        total: Number of items.
        unit: Name of an item, in the singular.
        quiet: Whether to show nothing.
        every: Seconds between two lines when stderr is not a terminal.

    Yields:
        The items.
    """
    bar = ProgressBar(label, unit=unit, quiet=quiet, every=every)
    bar.start(total)
    try:
        for item in items:
            yield item
            bar.advance(1)
    finally:
        bar.finish()


def remark(text: str) -> None:
    """Writes a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class SharedProgress:
    """Collects the progress of several threads and passes it to one ``Progress`` in large steps.

    Args:
        progress: Receiver of the progress.
        step: Number of units to collect before they are passed on.
    """

    def __init__(self, progress: Progress, *, step: int = 1 << 24) -> None:
        self._progress, self._step = progress, step
        self._lock, self._waiting = threading.Lock(), 0

    def advance(self, amount: int) -> None:
        """Adds units, and passes them on when ``step`` is reached."""
        with self._lock:
            self._waiting += amount
            if self._waiting >= self._step:
                self._flush()

    def flush(self) -> None:
        """Passes on the units collected so far."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, 0
        if waiting:
            self._progress.advance(waiting)
