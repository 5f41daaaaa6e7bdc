"""How far a merge is: a protocol for whoever shows it, and the bar of the command line."""

from __future__ import annotations

import sys
import threading
from typing import Any, Protocol

__all__ = ["Bar", "Progress", "Silent"]


class Progress(Protocol):
    """Told how many bytes of the output are written. Called from one thread at a time."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """The run begins; ``done_bytes`` are there from an earlier run."""
        ...

    def advance(self, nbytes: int) -> None:
        """More bytes are written."""
        ...

    def finish(self) -> None:
        """The run ends, well or not."""
        ...


class Silent:
    """Shows nothing."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Nothing to show."""

    def advance(self, nbytes: int) -> None:
        """Nothing to show."""

    def finish(self) -> None:
        """Nothing to show."""


class Bar:
    """A bar on stderr with bytes per second and time left; quiet when stderr is no terminal.

    Args:
        label: What stands before the bar.
        quiet: True to show nothing at all; None to show the bar on a terminal only.
    """

    def __init__(self, label: str = "merge", *, quiet: bool | None = None) -> None:
        self._label = label
        self._quiet = not sys.stderr.isatty() if quiet is None else quiet
        self._bar: Any = None

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Draws the bar; bytes of an earlier run do not count towards the speed."""
        if self._quiet:
            return
        from tqdm import tqdm  # noqa: PLC0415 - only a visible bar pays for it

        self._bar = tqdm(
            total=total_bytes,
            initial=done_bytes,
            desc=self._label,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def advance(self, nbytes: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(nbytes)

    def finish(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class Shared:
    """Lets several threads report to one ``Progress``, in steps that cost nothing.

    Args:
        progress: The receiver.
        step: Bytes to collect before it is told.
    """

    def __init__(self, progress: Progress, *, step: int = 1 << 24) -> None:
        self._progress, self._step = progress, step
        self._lock, self._waiting = threading.Lock(), 0

    def advance(self, nbytes: int) -> None:
        """Adds bytes; passes them on once there are enough."""
        with self._lock:
            self._waiting += nbytes
            if self._waiting >= self._step:
                self._flush()

    def flush(self) -> None:
        """Passes on what was collected."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, 0
        if waiting:
            self._progress.advance(waiting)
