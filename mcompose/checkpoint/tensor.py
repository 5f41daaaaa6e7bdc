"""Where one tensor lies on disk, and the dtypes that safetensors has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DTYPE_BITS", "MERGEABLE_DTYPES", "TensorEntry"]

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element, for every dtype of the format."""

MERGEABLE_DTYPES = ("F16", "BF16", "F32", "F64")
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
