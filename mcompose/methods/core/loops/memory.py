"""Addresses as arrays, and bits as numbers."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

__all__ = ["as_float", "as_word", "doubles", "floats", "halves", "longs", "words"]


@intrinsic
def _pointer(typing_context, address, kind):
    """The address as a pointer to elements of one type."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@intrinsic
def as_float(typing_context, word):
    """The float32 whose bits are a word."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_word(typing_context, number):
    """The bits of a float32. A second array over the same memory would keep the loop from being vectorised."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit(forceinline=True)
def floats(address, count):
    """``count`` float32 numbers."""
    return carray(_pointer(address, np.float32), (count,))


@njit(forceinline=True)
def doubles(address, count):
    """``count`` float64 numbers."""
    return carray(_pointer(address, np.float64), (count,))


@njit(forceinline=True)
def halves(address, count):
    """``count`` 16-bit words: bfloat16 or float16."""
    return carray(_pointer(address, np.uint16), (count,))


@njit(forceinline=True)
def words(address, count):
    """``count`` 32-bit words: the bits of float32 numbers."""
    return carray(_pointer(address, np.uint32), (count,))


@njit(forceinline=True)
def longs(address, count):
    """``count`` signed 64-bit words: addresses, counters."""
    return carray(_pointer(address, np.int64), (count,))
