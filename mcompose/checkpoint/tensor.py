"""Location of one tensor on disk, and the dtypes of safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcompose.dtypes import DTYPES, FLOAT_NAMES

__all__ = ["DTYPE_BITS", "MERGEABLE_DTYPES", "TensorEntry"]

DTYPE_BITS: dict[str, int] = {code: dtype.bits for code, dtype in DTYPES.items()}
"""Dtype of the format to the bits of one element."""

MERGEABLE_DTYPES = tuple(FLOAT_NAMES)
"""Dtypes that mcompose does arithmetic on; tensors of all others are copied unchanged."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in one file.

    Args:
        key: Name in the file.
        dtype: safetensors dtype (``BF16``).
        shape: Dimensions; ``()`` for a scalar.
        file: Path of the file.
        offset: First byte of the data, from the start of the file.
        nbytes: Length of the data, in bytes.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
