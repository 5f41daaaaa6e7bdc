"""Number formats: a tile of any element type to float32, and back with one rounding.

Widening is exact (float64 is rounded once: the maths is float32). Narrowing rounds to nearest, ties to even, as the
hardware does, and counts what is not finite, so that a broken source or an overflow is noticed in the pass that
touches the numbers anyway.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mcompose.methods.core.loops.layout import BF16, F16, F32, TILE
from mcompose.methods.core.loops.memory import as_float, as_word, doubles, floats, halves, words

__all__ = ["count_nan", "narrow", "widen"]


@njit(forceinline=True)
def _widen_f16(bits, out, count):
    for i in range(count):
        word = np.uint32(bits[i])
        special = (word & np.uint32(0x7C00)) == np.uint32(0x7C00)
        # Multiplying by 2^112 moves the exponent's origin, and makes subnormals normal without a branch.
        value = as_float(np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13))) * np.float32(2.0**112)
        infinite = np.uint32(0x7F800000) if special else np.uint32(0)
        sign = (word & np.uint32(0x8000)) << np.uint32(16)
        out[i] = as_float(np.uint32(as_word(value) | infinite | sign))


@njit(forceinline=True)
def widen(address, kind, first, count, out):
    """Widens the elements ``first`` to ``first + count`` of a chunk into the float32 tile at ``out``."""
    if kind == BF16:
        bits, wide = halves(address + 2 * first, count), words(out, count)
        for i in range(count):
            wide[i] = np.uint32(np.uint32(bits[i]) << np.uint32(16))
    elif kind == F32:
        single, copy = floats(address + 4 * first, count), floats(out, count)
        for i in range(count):
            copy[i] = single[i]
    elif kind == F16:
        _widen_f16(halves(address + 2 * first, count), floats(out, count), count)
    else:
        double, rounded = doubles(address + 8 * first, count), floats(out, count)
        for i in range(count):
            rounded[i] = np.float32(double[i])


@njit(forceinline=True)
def _narrow_bf16(wide, bits, count):
    bad = np.uint32(0)
    for i in range(count):
        word = wide[i]
        rounded = np.uint32(word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1)))
        # Rounding could carry a NaN's payload into an infinity: NaN keeps its top bits and becomes quiet.
        nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        result = np.uint32((word | np.uint32(0x400000)) if nan else rounded) >> np.uint32(16)
        bits[i] = np.uint16(result)
        bad = np.uint32(bad + np.uint32((result & np.uint32(0x7F80)) == np.uint32(0x7F80)))
    return bad


@njit(forceinline=True)
def _half_bits(word):
    """float16 bits of a float32's, without the sign."""
    if word > np.uint32(0x7F800000):
        return np.uint32(0x7E00)
    if word >= np.uint32(0x47800000):
        return np.uint32(0x7C00)
    if word < np.uint32(0x38800000):
        # A subnormal's unit is 2^-24: scaled by it, the number is an integer, which the adder rounds.
        scaled = as_float(word) * np.float32(2.0**24)
        whole = np.uint32(scaled)
        rest = np.float32(scaled - np.float32(whole))
        up = rest > np.float32(0.5) or (rest == np.float32(0.5) and (whole & np.uint32(1)) == np.uint32(1))
        return np.uint32(whole + np.uint32(up))
    odd = (word >> np.uint32(13)) & np.uint32(1)
    return np.uint32(np.uint32(word - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13))


@njit(forceinline=True)
def _narrow_f16(wide, bits, count):
    bad = np.uint32(0)
    for i in range(count):
        result = _half_bits(np.uint32(wide[i] & np.uint32(0x7FFFFFFF)))
        bits[i] = np.uint16(result | ((wide[i] >> np.uint32(16)) & np.uint32(0x8000)))
        bad = np.uint32(bad + np.uint32((result & np.uint32(0x7C00)) == np.uint32(0x7C00)))
    return bad


@njit(forceinline=True)
def _count_special(wide, count):
    bad = np.uint32(0)
    for i in range(count):
        bad = np.uint32(bad + np.uint32((wide[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)))
    return bad


@njit(forceinline=True)
def narrow(tile, address, kind, first, count):
    """Rounds a float32 tile into elements of a chunk; returns how many results are not finite."""
    if kind == BF16:
        return np.int64(_narrow_bf16(words(tile, count), halves(address + 2 * first, count), count))
    if kind == F16:
        return np.int64(_narrow_f16(words(tile, count), halves(address + 2 * first, count), count))
    values = floats(tile, count)
    if kind == F32:
        single = floats(address + 4 * first, count)
        for i in range(count):
            single[i] = values[i]
    else:
        double = doubles(address + 8 * first, count)
        for i in range(count):
            double[i] = np.float64(values[i])
    return np.int64(_count_special(words(tile, count), count))


def count_nan(address, kind, count, tile):
    """Counts the NaNs of a chunk."""
    total = np.int64(0)
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        widen(address, kind, first, size, tile)
        bits = words(tile, size)
        for i in range(size):
            total += np.int64((bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000))
    return total
