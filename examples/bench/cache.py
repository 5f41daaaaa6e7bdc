"""Measures how much of the input files is in the page cache before a run, and drops them from it.

Warm means that the inputs were read shortly before and still are in memory. Cold means that the kernel was asked to
forget them (``posix_fadvise(DONTNEED)``, after a ``sync``, since it keeps what is not yet on disk). Cold is not: a disk
that was not read lately (a hypervisor or a drive has caches of its own), nor a cold Python (the program's own files
stay in memory).
"""

import os
from collections.abc import Sequence
from pathlib import Path

PROBES = 64


def drop(files: Sequence[Path]) -> None:
    """Asks the kernel to forget the content of files."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached(files: Sequence[Path]) -> float | None:
    """Estimates the share of the files in memory by evenly spread probes; None where the file system does not tell.

    A probe that misses may make the kernel read a little ahead: call ``drop`` again after it.
    """
    found = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            found += sum(_answers(descriptor, size * probe // PROBES) for probe in range(PROBES))
        except OSError:
            return None
        finally:
            os.close(descriptor)
    return found / (PROBES * len(files))


def _answers(descriptor: int, offset: int) -> bool:
    """Returns whether one byte can be read without waiting for a disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def can_be_cold(files: Sequence[Path]) -> bool:
    """Returns whether dropping has an effect (it has none on tmpfs and some overlay and network file systems)."""
    drop(files)
    share = cached(files)
    return share is not None and share < 0.1
