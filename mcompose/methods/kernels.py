"""Number formats and sums: the kernels that every merge runs through.

Arrays are one-dimensional, contiguous and aligned; ``bits`` are bfloat16 or float16 as uint16. Widening is
exact; narrowing rounds once, to nearest, ties to even, as the hardware does. Both count what is not finite,
so that a broken source and an overflowed result are noticed in the pass that touches the bytes anyway.
"""

from __future__ import annotations

import numpy as np

from mcompose.methods.compiled import kernel

__all__ = [
    "BLOCK",
    "LANES",
    "add_base",
    "axpy",
    "axpy_columns",
    "axpy_delta",
    "axpy_rows",
    "column_dots",
    "count_nonfinite",
    "dot_lanes",
    "narrow_bf16",
    "narrow_f16",
    "row_dots",
    "scaled",
    "scaled_delta",
    "widen_bf16",
    "widen_f16",
    "widen_f64",
]

Array = np.ndarray

BLOCK = 65536
"""Elements whose products are summed before they join the total; blocks start at multiples of it."""

LANES = 32
"""Running sums in a block: element ``i`` joins lane ``i mod 32``, so the cut into chunks changes nothing."""

_HALF_TO_SINGLE = np.float32(2.0**112)
_SINGLE_ONE_AT_HALF_SUBNORMAL = np.float32(0.5)


@kernel("int64", "in uint16", "out float32")
def widen_bf16(bits: Array, out: Array) -> int:
    """Widens bfloat16 bits into ``out``; returns how many are not finite."""
    words = out.view(np.uint32)
    bad = 0
    for i in range(bits.size):
        words[i] = np.uint32(bits[i]) << np.uint32(16)
        bad += (bits[i] & 0x7F80) == 0x7F80
    return bad


@kernel("int64", "in uint16", "out float32")
def widen_f16(bits: Array, out: Array) -> int:
    """Widens float16 bits into ``out``, subnormals too; returns how many are not finite."""
    words = out.view(np.uint32)
    bad = 0
    for i in range(bits.size):
        word = np.uint32(bits[i])
        special = (word & np.uint32(0x7C00)) == np.uint32(0x7C00)
        # Multiplying by 2^112 moves the exponent's origin, and makes subnormals normal without a branch.
        words[i] = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13))
        out[i] = out[i] * _HALF_TO_SINGLE
        infinite = np.uint32(0x7F800000) if special else np.uint32(0)
        words[i] = np.uint32(words[i] | infinite | ((word & np.uint32(0x8000)) << np.uint32(16)))
        bad += special
    return bad


@kernel("int64", "in float64", "out float32")
def widen_f64(values: Array, out: Array) -> int:
    """Rounds float64 into ``out`` (the maths is float32); returns how many results are not finite."""
    bad = 0
    for i in range(values.size):
        value = np.float32(values[i])
        out[i] = value
        bad += not np.isfinite(value)
    return bad


@kernel("int64", "in float32")
def count_nonfinite(values: Array) -> int:
    """Counts infinities and NaNs."""
    words = values.view(np.uint32)
    bad = 0
    for i in range(words.size):
        bad += (words[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return bad


@kernel("int64", "in float32", "out uint16")
def narrow_bf16(values: Array, out: Array) -> int:
    """Rounds to bfloat16 bits, nearest even; returns how many results are not finite."""
    words = values.view(np.uint32)
    bad = 0
    for i in range(words.size):
        word = words[i]
        rounded = np.uint32(word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1)))
        # Rounding could carry a NaN's payload into an infinity: NaN keeps its top bits and becomes quiet.
        nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        result = np.uint32((word | np.uint32(0x400000)) if nan else rounded) >> np.uint32(16)
        out[i] = np.uint16(result)
        bad += (result & np.uint32(0x7F80)) == np.uint32(0x7F80)
    return bad


@kernel("int64", "in float32", "out uint16")
def narrow_f16(values: Array, out: Array) -> int:
    """Rounds to float16 bits, nearest even, subnormals too; returns how many results are not finite."""
    words = values.view(np.uint32)
    scratch = np.empty(1, np.float32)
    scratch_word = scratch.view(np.uint32)
    bad = 0
    for i in range(words.size):
        sign = (words[i] >> np.uint32(16)) & np.uint32(0x8000)
        word = np.uint32(words[i] & np.uint32(0x7FFFFFFF))
        if word > np.uint32(0x7F800000):
            result = np.uint32(0x7E00)
        elif word >= np.uint32(0x47800000):
            result = np.uint32(0x7C00)
        elif word < np.uint32(0x38800000):
            # Adding one half puts the subnormal's unit at the float32's last bit, so the adder does the
            # rounding.
            scratch_word[0] = word
            scratch[0] = scratch[0] + _SINGLE_ONE_AT_HALF_SUBNORMAL
            result = np.uint32(scratch_word[0] - np.uint32(0x3F000000))
        else:
            odd = (word >> np.uint32(13)) & np.uint32(1)
            result = np.uint32(word - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        out[i] = np.uint16(result | sign)
        bad += (result & np.uint32(0x7C00)) == np.uint32(0x7C00)
    return bad


@kernel("void", "in float32", "float32", "out float32")
def scaled(x: Array, weight: np.float32, out: Array) -> None:
    """``out = weight * x``."""
    for i in range(x.size):
        out[i] = weight * x[i]


@kernel("void", "in float32", "float32", "out float32")
def axpy(x: Array, weight: np.float32, out: Array) -> None:
    """``out += weight * x``: a product and a sum, each rounded."""
    for i in range(x.size):
        out[i] = out[i] + weight * x[i]


@kernel("void", "in float32", "in float32", "float32", "out float32")
def scaled_delta(x: Array, base: Array, weight: np.float32, out: Array) -> None:
    """``out = weight * (x - base)``."""
    for i in range(x.size):
        out[i] = weight * (x[i] - base[i])


@kernel("void", "in float32", "in float32", "float32", "out float32")
def axpy_delta(x: Array, base: Array, weight: np.float32, out: Array) -> None:
    """``out += weight * (x - base)``."""
    for i in range(x.size):
        out[i] = out[i] + weight * (x[i] - base[i])


@kernel("void", "in float32", "float32", "float32", "out float32")
def add_base(base: Array, divisor: np.float32, scale: np.float32, out: Array) -> None:
    """``out = base + out / divisor * scale``."""
    for i in range(base.size):
        out[i] = base[i] + out[i] / divisor * scale


@kernel("void", "in float32", "in float32", "int64", "out float64", "out float64")
def dot_lanes(x: Array, y: Array, start: int, lanes: Array, total: Array) -> None:
    """Adds ``x . y`` of one chunk, which starts at element ``start``, to ``lanes`` and ``total`` (float64).

    The sum is ``total[0] + lanes.sum()``, the lanes in order.
    """
    i = 0
    while i < x.size:
        stop = min(x.size, i + BLOCK - (start + i) % BLOCK)
        while i < stop and (start + i) % LANES != 0:
            lanes[(start + i) % LANES] += np.float64(x[i]) * np.float64(y[i])
            i += 1
        while i + LANES <= stop:
            for lane in range(LANES):
                lanes[lane] += np.float64(x[i + lane]) * np.float64(y[i + lane])
            i += LANES
        while i < stop:
            lanes[(start + i) % LANES] += np.float64(x[i]) * np.float64(y[i])
            i += 1
        if (start + i) % BLOCK == 0:
            block = 0.0
            for lane in range(LANES):
                block += lanes[lane]
                lanes[lane] = 0.0
            total[0] += block


@kernel("void", "in float32", "in float32", "int64", "out float64")
def row_dots(x: Array, y: Array, length: int, out: Array) -> None:
    """``out[r] = x[r] . y[r]`` in float64 for rows of ``length`` elements."""
    lanes = np.zeros(LANES)
    for row in range(out.size):
        lanes[:] = 0.0
        first = row * length
        whole = length - length % LANES
        for i in range(first, first + whole, LANES):
            for lane in range(LANES):
                lanes[lane] += np.float64(x[i + lane]) * np.float64(y[i + lane])
        for i in range(whole, length):
            lanes[i - whole] += np.float64(x[first + i]) * np.float64(y[first + i])
        total = 0.0
        for lane in range(LANES):
            total += lanes[lane]
        out[row] = total


@kernel("void", "in float32", "in float32", "int64", "out float64")
def column_dots(x: Array, y: Array, start: int, sums: Array) -> None:
    """Adds the products of one chunk to its columns; element ``e`` is in column ``e mod sums.size``."""
    column = start % sums.size
    for i in range(x.size):
        sums[column] += np.float64(x[i]) * np.float64(y[i])
        column = column + 1 if column + 1 < sums.size else 0


@kernel("void", "in float32", "in float32", "int64", "out float32")
def axpy_rows(x: Array, weights: Array, length: int, out: Array) -> None:
    """``out[r] += weights[r] * x[r]`` for rows of ``length`` elements."""
    for row in range(weights.size):
        weight = weights[row]
        for i in range(row * length, (row + 1) * length):
            out[i] = out[i] + weight * x[i]


@kernel("void", "in float32", "in float32", "int64", "out float32")
def axpy_columns(x: Array, weights: Array, start: int, out: Array) -> None:
    """``out[e] += weights[e mod weights.size] * x[e]`` for a chunk that starts at element ``start``."""
    column = start % weights.size
    for i in range(x.size):
        out[i] = out[i] + weights[column] * x[i]
        column = column + 1 if column + 1 < weights.size else 0
