"""Where one tensor lies on disk, and the dtypes that safetensors has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcompose.dtypes import DTYPES, FLOAT_NAMES

__all__ = ["DTYPE_BITS", "MERGEABLE_DTYPES", "TensorEntry"]

DTYPE_BITS: dict[str, int] = {code: dtype.bits for code, dtype in DTYPES.items()}
"""Bits of one element, for every dtype of the format."""

MERGEABLE_DTYPES = tuple(FLOAT_NAMES)
"""The dtypes that arithmetic is done on; all others are copied untouched."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in one file.

    Args:
        key: Name in the file.
        dtype: safetensors dtype (``BF16``).
        shape: Dimensions; ``()`` for a scalar.
        file: The file.
        offset: First byte of the data, counted from the start of the file.
        nbytes: Length of the data.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
