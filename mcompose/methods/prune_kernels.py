"""Pruning and election: the kernels of the TIES, DARE, breadcrumbs and DELLA families.

A magnitude's *key* is the float32 bit pattern without its sign: for such integers the order is the order of
the magnitudes, so ranks can be counted instead of sorted. What is dropped is multiplied by zero, not
overwritten: a NaN stays a NaN and is noticed when the result is narrowed.
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
    "keep_by_chance",
    "keep_random",
    "rank_chances",
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

    Of the elements equal to ``low`` the first ``low_ties`` are kept; of those equal to ``high`` the first
    ``high_ties`` are dropped, in element order; ``seen`` holds how many of each came in earlier chunks.
    """
    low_key, high_key = np.int32(low), np.int32(high)
    for first in range(0, values.size, _TILE):
        tile = values[first : first + _TILE]
        keys = tile.view(np.int32)
        equal = 0
        for i in range(tile.size):
            key = keys[i] & np.int32(0x7FFFFFFF)
            equal += (key == low_key) | (key == high_key)
        for i in range(tile.size if equal == 0 else 0):
            key = keys[i] & np.int32(0x7FFFFFFF)
            tile[i] = tile[i] * (np.float32(1) if (key > low_key) & (key < high_key) else np.float32(0))
        for i in range(0 if equal == 0 else tile.size):
            key = keys[i] & np.int32(0x7FFFFFFF)
            keep = (key > low_key) & (key < high_key)
            if key == low_key:
                keep = seen[0] < low_ties
                seen[0] += 1
            if key == high_key:
                keep = (key > low_key or keep) and seen[1] >= high_ties
                seen[1] += 1
            tile[i] = tile[i] * (np.float32(1) if keep else np.float32(0))


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


@kernel("void", "out float32", "in float32", "in float32")
def keep_by_chance(values: Array, draws: Array, chances: Array) -> None:
    """Zeroes the elements whose draw is not below their own chance."""
    for i in range(values.size):
        values[i] = values[i] * (np.float32(1) if draws[i] < chances[i] else np.float32(0))


@kernel("void", "in float32", "int64", "float32", "float32", "out float32")
def rank_chances(values: Array, length: int, low: np.float32, span: np.float32, out: Array) -> None:
    """Gives each element a chance by its rank in its row of ``length``: ``low`` for the smallest, up by ``span``.

    Rows are sorted by counting 11 bits at a time, which keeps equal magnitudes in element order.
    """
    words = values.view(np.uint32)
    keys = np.empty(length, np.uint32)
    order = np.empty(length, np.int64)
    spare = np.empty(length, np.int64)
    counts = np.empty(2049, np.int64)
    for first in range(0, values.size, length):
        for i in range(length):
            keys[i] = words[first + i] & np.uint32(0x7FFFFFFF)
            order[i] = i
        for shift in range(0, 33, 11):
            bits = np.uint32(shift)
            counts[:] = 0
            for i in range(length):
                counts[((keys[i] >> bits) & np.uint32(0x7FF)) + 1] += 1
            for bin_ in range(2048):
                counts[bin_ + 1] += counts[bin_]
            for i in range(length):
                bin_of = (keys[order[i]] >> bits) & np.uint32(0x7FF)
                spare[counts[bin_of]] = order[i]
                counts[bin_of] += 1
            order, spare = spare, order
        for rank in range(length):
            place = np.float32(rank) / np.float32(length - 1) if length > 1 else np.float32(0.5)
            out[first + order[rank]] = low + place * span


@kernel("void", "in float32", "int64", "out float64", "out float64")
def abs_lanes(values: Array, start: int, lanes: Array, total: Array) -> None:
    """Adds the absolute values of one chunk to ``lanes`` and ``total``, as `kernels.dot_lanes` does."""
    i = 0
    while i < values.size:
        stop = min(values.size, i + BLOCK - (start + i) % BLOCK)
        while i < stop and (start + i) % LANES != 0:
            lanes[(start + i) % LANES] += np.float64(abs(values[i]))
            i += 1
        while i + LANES <= stop:
            for lane in range(LANES):
                lanes[lane] += np.float64(abs(values[i + lane]))
            i += LANES
        while i < stop:
            lanes[(start + i) % LANES] += np.float64(abs(values[i]))
            i += 1
        if (start + i) % BLOCK == 0:
            block = 0.0
            for lane in range(LANES):
                block += lanes[lane]
                lanes[lane] = 0.0
            total[0] += block


@kernel("void", "in2 float32", "in2 float32", "float32", "in float32", "out float32")
def elect(values: Array, shares: Array, scale: np.float32, base: Array, out: Array) -> None:
    """``out = base + scale * mean`` of the values whose sign wins; plus wins at zero.

    The columns of ``shares`` hold for each source its weight in the vote, in the sum and in the divisor.
    A divisor of zero counts as one.
    """
    total = np.empty(_TILE, np.float32)
    divisor = np.empty(_TILE, np.float32)
    for first in range(0, out.size, _TILE):
        mixed = out[first : first + _TILE]
        origin = base[first : first + _TILE]
        total[:] = 0
        divisor[:] = 0
        mixed[:] = 0
        for source in range(shares.shape[0]):
            vote = shares[source, 0]
            value = values[source, first : first + _TILE]
            for i in range(value.size):
                total[i] = total[i] + vote * value[i]
        for source in range(shares.shape[0]):
            vote, weight, part = shares[source, 0], shares[source, 1], shares[source, 2]
            value = values[source, first : first + _TILE]
            for i in range(value.size):
                ballot = vote * value[i]
                ballot = ballot if total[i] >= 0 else -ballot
                one = np.float32(1) if ballot > 0 else np.float32(0)
                mixed[i] = mixed[i] + weight * value[i] * one
                divisor[i] = divisor[i] + part * one
        for i in range(mixed.size):
            safe = divisor[i] if divisor[i] != 0 else np.float32(1)
            mixed[i] = origin[i] + mixed[i] / safe * scale


@kernel("void", "in2 float32", "in float32", "float32", "float32", "in float32", "out float32")
def add_up(values: Array, weights: Array, divisor: np.float32, scale: np.float32, base: Array, out: Array) -> None:
    """``out = base + sum(weights * values) / divisor * scale``."""
    for first in range(0, out.size, _TILE):
        total = out[first : first + _TILE]
        origin = base[first : first + _TILE]
        for source in range(weights.size):
            weight = weights[source]
            value = values[source, first : first + _TILE]
            for i in range(value.size):
                total[i] = weight * value[i] + (total[i] if source > 0 else np.float32(0))
        for i in range(total.size):
            total[i] = origin[i] + total[i] / divisor * scale
