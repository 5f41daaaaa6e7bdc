"""The digest of a tensor: ``xxh3:`` and the 128-bit XXH3 of its bytes, in hex.

It detects damage and differences at memory speed; it does not protect against forgery. Small files are hashed with
SHA-256.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import CheckpointError

__all__ = ["TensorDigest", "digest_file_range", "digest_tensor"]

_BLOCK_BYTES = 1 << 20


class TensorDigest:
    """Digest that is computed piece by piece, in the order of the bytes."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: memoryview | bytes) -> None:
        """Adds the next bytes."""
        self._state.update(data)

    def text(self) -> str:
        """Returns ``xxh3:`` and 32 hex digits."""
        return f"xxh3:{self._state.hexdigest()}"


def digest_tensor(entry: TensorEntry) -> str:
    """Computes the digest of a tensor on disk.

    Raises:
        CheckpointError: The file cannot be read, or is too short.
    """
    return digest_file_range(entry.file, entry.offset, entry.nbytes)


def digest_file_range(path: Path, offset: int, length: int) -> str:
    """Computes the digest of a range of a file, read in blocks.

    Args:
        path: The file.
        offset: First byte of the range.
        length: Number of bytes.

    Raises:
        CheckpointError: The file cannot be read, or is too short.
    """
    digest = TensorDigest()
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, length)))
    try:
        with path.open("rb", buffering=0) as handle:
            position, end = offset, offset + length
            while position < end:
                count = os.preadv(handle.fileno(), [buffer[: end - position]], position)
                if count == 0:
                    raise CheckpointError(f"'{path}' ends at byte {position}; byte {end} was expected.")
                digest.update(buffer[:count])
                position += count
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return digest.text()
