"""Positional reads: any thread reads any piece of any tensor from files that are opened once.

Reads use ``preadv`` into the caller's buffer. Mapping the files would be shorter, but mapped pages count as memory of
the process, so its memory would depend on the size of the model.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import CheckpointError

__all__ = ["TensorFiles"]


class TensorFiles:
    """Set of open weight files, each opened at its first use; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def read_into(self, entry: TensorEntry, buffer: memoryview, *, start: int = 0) -> None:
        """Fills a buffer with a piece of a tensor.

        Args:
            entry: The tensor.
            buffer: Writable bytes; its length is the length of the piece.
            start: First byte of the piece, from the start of the tensor.

        Raises:
            CheckpointError: The file cannot be read, or has become shorter.
            ValueError: The piece is not inside the tensor.
        """
        buffer = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        if start < 0 or start + len(buffer) > entry.nbytes:
            raise ValueError(f"Bytes {start} to {start + len(buffer)} are not all in tensor '{entry.key}'.")
        position = entry.offset + start
        done = 0
        try:
            descriptor = self._descriptor(entry.file)
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], position + done)
                if count == 0:
                    raise CheckpointError(
                        f"'{entry.file}' ends at byte {position + done}, inside tensor '{entry.key}'.",
                        hint="The file changed while it was read; run the command again.",
                    )
                done += count
        except OSError as error:
            raise CheckpointError(f"'{entry.file}' cannot be read: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        with self._lock:
            descriptors = list(self._descriptors.values())
            self._descriptors.clear()
        for descriptor in descriptors:
            os.close(descriptor)

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            descriptor = self._descriptors.get(file)
            if descriptor is None:
                descriptor = self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return descriptor

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
