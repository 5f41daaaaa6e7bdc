"""Converts bytes to numbers and back in numpy; the fast kernels are tested against this code.

numpy does not have bfloat16, so a raw bfloat16 tensor is a ``uint16`` array: the upper half of a float32. Widening is
exact. Narrowing rounds to nearest, ties to even; values that are too large become infinite, NaN stays NaN. 8-bit floats
are raw ``uint8``, and dtypes below 8 bits are flat ``uint8``: they are copied, never computed with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcompose.checkpoint.files import TensorFiles
from mcompose.checkpoint.tensor import DTYPE_BITS, MERGEABLE_DTYPES, TensorEntry
from mcompose.dtypes import DTYPES

__all__ = ["decode", "encode", "raw_dtype", "read_float32", "read_tensor"]


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """Returns the numpy dtype that holds a tensor's bytes unchanged; ``uint8`` where numpy does not have the dtype."""
    return np.dtype(DTYPES[dtype].raw)


def decode(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Converts raw values to float32.

    Args:
        raw: An array of ``raw_dtype(dtype)``, any shape.
        dtype: One of ``MERGEABLE_DTYPES``.

    Returns:
        A new array of the same shape (F32: the same array). Exact except for F64, which is rounded once.

    Raises:
        ValueError: The dtype is not mergeable.
    """
    _check_mergeable(dtype)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # too large becomes infinite, which the merge reports
        return raw.astype(np.float32, copy=False)


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Converts float32 to raw values, rounded to nearest, ties to even.

    Args:
        values: float32, any shape.
        dtype: One of ``MERGEABLE_DTYPES``.

    Returns:
        An array of ``raw_dtype(dtype)`` and the same shape.

    Raises:
        ValueError: The dtype is not mergeable.
    """
    _check_mergeable(dtype)
    if dtype != "BF16":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(raw_dtype(dtype), copy=False)
    bits = np.ascontiguousarray(values).reshape(values.shape).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def read_tensor(
    entry: TensorEntry, rows: tuple[int, int] | None = None, *, files: TensorFiles | None = None
) -> NDArray[Any]:
    """Reads a tensor's raw values.

    Args:
        entry: The tensor.
        rows: Range of indices of the first dimension, end not included; None for the whole tensor.
        files: Open files to read from; default: open and close the file.

    Returns:
        An array of ``raw_dtype``; flat for dtypes below 8 bits.

    Raises:
        CheckpointError: The file cannot be read.
        ValueError: The tensor does not have these rows.
    """
    dtype = raw_dtype(entry.dtype)
    whole_bytes = DTYPE_BITS[entry.dtype] % 8 == 0
    shape = entry.shape if whole_bytes else (entry.nbytes,)
    start = 0
    if rows is not None:
        first, last = rows
        if not whole_bytes or not shape or not 0 <= first <= last <= shape[0]:
            raise ValueError(f"Tensor '{entry.key}' of shape {entry.shape} has no rows {first} to {last}.")
        start = first * math.prod(shape[1:]) * dtype.itemsize
        shape = (last - first, *shape[1:])
    raw = np.empty(shape, dtype)
    if raw.size:
        buffer = raw.reshape(-1).view(np.uint8).data
        if files is None:
            with TensorFiles() as opened:
                opened.read_into(entry, buffer, start=start)
        else:
            files.read_into(entry, buffer, start=start)
    return raw


def read_float32(
    entry: TensorEntry, rows: tuple[int, int] | None = None, *, files: TensorFiles | None = None
) -> NDArray[np.float32]:
    """Reads a tensor as float32; see ``read_tensor`` and ``decode``."""
    _check_mergeable(entry.dtype)
    return decode(read_tensor(entry, rows, files=files), entry.dtype)


def _check_mergeable(dtype: str) -> None:
    if dtype not in MERGEABLE_DTYPES:
        raise ValueError(f"Tensors of dtype {dtype} are only copied, never computed with.")
