"""Runs a command and measures its cost: time, memory, bytes. Linux only, because it reads ``/proc``.

A child's ``ru_maxrss`` starts from the peak of the process that started it. So the measuring process must stay small
(this module and its callers import neither numpy nor torch), and a figure below the caller's own peak is replaced by
the highest ``VmHWM`` seen while the command ran.
"""

import os
import select
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

INTERVAL_MS = 10


@dataclass(frozen=True)
class Cost:
    """Cost of one run of a command.

    Attributes:
        wall: Seconds on the clock.
        user: CPU seconds in the program, over all threads.
        system: CPU seconds in the kernel: page faults, copies between page cache and process.
        peak: Peak of the resident memory in bytes, pages of mapped files included.
        anonymous: Peak of the anonymous resident memory in bytes, from samples 10 ms apart.
        read: Bytes of ``read`` calls, from page cache or disk; mapped files are not included.
        written: Bytes of ``write`` calls.
    """

    wall: float
    user: float
    system: float
    peak: int
    anonymous: int
    read: int
    written: int

    @property
    def cpu(self) -> float:
        """CPU seconds, user and system."""
        return self.user + self.system


NOT_HANDED_DOWN = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
"""Variables that are removed, so that every tool chooses its number of threads and uses its compiled bytecode."""


def run(command: list[str], *, env: dict[str, str] | None = None) -> Cost:
    """Runs a command to its end, as a user's shell would: without the variables in NOT_HANDED_DOWN.

    Raises:
        RuntimeError: It failed; its output is shown.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_DOWN}
    own_peak = memory("self").get("VmHWM", 0)
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**inherited, **(env or {})})
        peak, anonymous = watch(process.pid)
        wall = time.perf_counter() - started
        read, written = transferred(process.pid)  # before it is reaped: an ended process still tells its counts
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{tail(log)}")
    told = usage.ru_maxrss * 1024
    peak = told if told > own_peak else peak
    return Cost(wall, usage.ru_utime, usage.ru_stime, max(peak, anonymous), anonymous, read, written)


def watch(pid: int) -> tuple[int, int]:
    """Samples a process until it ends; returns the highest VmHWM and the highest RssAnon, in bytes."""
    peak = anonymous = 0
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(INTERVAL_MS):
            now = memory(str(pid))
            peak = max(peak, now.get("VmHWM", 0))
            anonymous = max(anonymous, now.get("RssAnon", 0))
    finally:
        os.close(descriptor)
    return peak, anonymous


def memory(pid: str) -> dict[str, int]:
    """Reads the memory lines of ``/proc/<pid>/status``, in bytes; empty for a process that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}


def transferred(pid: int) -> tuple[int, int]:
    """Returns the bytes that a process read and wrote by system calls."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    counts = {name: int(count) for name, count in (line.split(": ") for line in lines)}
    return counts["rchar"], counts["wchar"]


def tail(log: BinaryIO) -> str:
    """Returns the last lines that the command printed."""
    log.seek(0)
    return log.read().decode(errors="replace")[-2000:]
