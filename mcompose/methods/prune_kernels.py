"""Pruning and election: the kernels of the TIES, DARE, breadcrumbs and DELLA families.

A magnitude's *key* is the float32 bit pattern without its sign: for such integers the order is the order of the
magnitudes, so ranks can be counted instead of sorted. What is dropped is multiplied by zero, not overwritten: a NaN
stays a NaN and is noticed when the result is narrowed.
"""

from __future__ import annotations

import numpy as np

from mcompose.methods.compiled import kernel
from mcompose.methods.kernels import BLOCK, LANES

__all__ = [
    "GOLDEN",
    "abs_lanes",
    "add_up",
    "count_high_keys",
    "count_low_keys",
    "elect",
    "keep_band",
    "keep_random",
    "keep_ranked",
    "uniforms",
]

Array = np.ndarray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Step of the SplitMix64 counter."""

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNIT = np.float32(2.0**-24)
_TILE = 1024


@kernel("void", "in float32", "out int64")
def count_high_keys(values: Array, counts: Array) -> None:
    """Counts the upper 15 bits of the keys; ``counts`` has 32,768 places."""
    words = values.view(np.uint32)
    for i in range(words.size):
        counts[(words[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@kernel("void", "in float32", "int64", "out int64")
def count_low_keys(values: Array, high: int, counts: Array) -> None:
    """Counts the lower 16 bits of the keys whose upper bits are ``high``; ``counts`` has 65,536 places."""
    words = values.view(np.uint32)
    wanted = np.uint32(high)
    for i in range(words.size):
        key = words[i] & np.uint32(0x7FFFFFFF)
        if key >> np.uint32(16) == wanted:
            counts[key & np.uint32(0xFFFF)] += 1


@kernel("void", "out float32", "int64", "int64", "int64", "int64", "out int64")
def keep_band(values: Array, low: int, low_ties: int, high: int, high_ties: int, seen: Array) -> None:
    """Zeroes all but the keys above ``low`` and not above ``high``.

    Of the elements equal to ``low`` the first ``low_ties`` are kept; of those equal to ``high`` the first ``high_ties``
    are dropped, in element order; ``seen`` holds how many of each came in earlier chunks.
    """
    words = values.view(np.int32)
    low_key, high_key = np.int32(low), np.int32(high)
    for first in range(0, values.size, _TILE):
        stop = min(values.size, first + _TILE)
        equal = 0
        for i in range(first, stop):
            key = words[i] & np.int32(0x7FFFFFFF)
            equal += (key == low_key) | (key == high_key)
        if equal == 0:
            for i in range(first, stop):
                key = words[i] & np.int32(0x7FFFFFFF)
                inside = (key > low_key) & (key < high_key)
                values[i] = values[i] * (np.float32(1) if inside else np.float32(0))
            continue
        for i in range(first, stop):
            key = words[i] & np.int32(0x7FFFFFFF)
            keep = key > low_key
            if key == low_key:
                keep = seen[0] < low_ties
                seen[0] += 1
            if key > high_key:
                keep = False
            if key == high_key:
                keep = keep and seen[1] >= high_ties
                seen[1] += 1
            values[i] = values[i] * (np.float32(1) if keep else np.float32(0))


@kernel("void", "uint64", "int64", "out float32")
def uniforms(key: int, start: int, out: Array) -> None:
    """Numbers in [0, 1) of 24 bits: the SplitMix64 sequence of ``key`` from element ``start`` on."""
    for i in range(out.size):
        z = key + np.uint64(start + i + 1) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
        out[i] = np.float32(np.int64(z >> np.uint64(40))) * _UNIT


@kernel("void", "out float32", "in float32", "float32")
def keep_random(values: Array, draws: Array, density: np.float32) -> None:
    """Zeroes the elements whose draw is not below ``density``."""
    for i in range(values.size):
        values[i] = values[i] * (np.float32(1) if draws[i] < density else np.float32(0))


@kernel("void", "out float32", "in float32", "int64", "float32", "float32", "bool_")
def keep_ranked(
    values: Array, draws: Array, length: int, density: np.float32, epsilon: np.float32, divide: bool
) -> None:
    """Zeroes elements with a chance that falls with their rank in rows of ``length`` elements.

    The smallest is kept with probability ``density - epsilon``, the largest with ``density + epsilon``; with ``divide``
    what is kept is divided by its probability.
    """
    order = np.empty(length, np.uint64)
    words = values.view(np.uint32)
    span = np.float32(2) * epsilon
    for first in range(0, values.size, length):
        for i in range(length):
            key = np.uint64(words[first + i] & np.uint32(0x7FFFFFFF))
            order[i] = (key << np.uint64(32)) | np.uint64(i)
        order.sort()
        for rank in range(length):
            i = first + np.int64(order[rank] & np.uint64(0xFFFFFFFF))
            place = np.float32(rank) / np.float32(length - 1) if length > 1 else np.float32(0.5)
            chance = (density - epsilon) + place * span
            value = values[i] * (np.float32(1) if draws[i] < chance else np.float32(0))
            values[i] = value / chance if divide else value


@kernel("void", "in float32", "int64", "out float64", "out float64")
def abs_lanes(values: Array, start: int, lanes: Array, total: Array) -> None:
    """Adds the absolute values of one chunk to ``lanes`` and ``total``, as `kernels.dot_lanes` does products."""
    for i in range(values.size):
        lanes[(start + i) % LANES] += np.float64(abs(values[i]))
        if (start + i + 1) % BLOCK == 0:
            block = 0.0
            for lane in range(LANES):
                block += lanes[lane]
                lanes[lane] = 0.0
            total[0] += block


@kernel("void", "in2 float32", "in float32", "bool_", "int64", "float32", "in float32", "out float32")
def elect(
    values: Array, weights: Array, weighted: bool, average: int, scale: np.float32, base: Array, out: Array
) -> None:
    """``out = base + scale * mean`` of the values whose sign wins.

    The sign of the sum wins, plus at zero; ``weighted`` votes with ``weights * values``, else with the values. The
    agreeing ``weights * values`` are summed, and divided by the agreeing weights (``average`` 1), by their number (2),
    or not at all (0).
    """
    total = np.empty(_TILE, np.float32)
    mixed = np.empty(_TILE, np.float32)
    share = np.empty(_TILE, np.float32)
    for first in range(0, out.size, _TILE):
        size = min(_TILE, out.size - first)
        for i in range(size):
            total[i] = mixed[i] = share[i] = np.float32(0)
        for source in range(weights.size):
            vote = weights[source] if weighted else np.float32(1)
            for i in range(size):
                total[i] = total[i] + vote * values[source, first + i]
        for source in range(weights.size):
            weight = weights[source]
            vote = weight if weighted else np.float32(1)
            part = weight if average == 1 else np.float32(1)
            for i in range(size):
                ballot = vote * values[source, first + i]
                agrees = (ballot > 0) if total[i] >= 0 else (ballot < 0)
                one = np.float32(1) if agrees else np.float32(0)
                mixed[i] = mixed[i] + weight * values[source, first + i] * one
                share[i] = share[i] + part * one
        for i in range(size):
            divisor = share[i] if average != 0 and share[i] != 0 else np.float32(1)
            out[first + i] = base[first + i] + mixed[i] / divisor * scale


@kernel("void", "in2 float32", "in float32", "float32", "float32", "in float32", "out float32")
def add_up(
    values: Array, weights: Array, divisor: np.float32, scale: np.float32, base: Array, out: Array
) -> None:
    """``out = base + sum(weights * values) / divisor * scale``."""
    for first in range(0, out.size, _TILE):
        stop = min(out.size, first + _TILE)
        for i in range(first, stop):
            out[i] = weights[0] * values[0, i]
        for source in range(1, weights.size):
            weight = weights[source]
            for i in range(first, stop):
                out[i] = out[i] + weight * values[source, i]
        for i in range(first, stop):
            out[i] = base[i] + out[i] / divisor * scale
