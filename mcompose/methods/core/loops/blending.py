"""Weighted sums and inner products: the loops of the blend methods (`mcompose.methods.core.blend`).

Inner products are float64 sums, tile by tile: chunks start at multiples of a tile, so that the cut into chunks changes
nothing. Inside a tile element ``i`` joins running sum ``i mod LANES``, so that the processor can add several at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mcompose.methods.core.loops.formats import narrow, widen
from mcompose.methods.core.loops.layout import LANES, TILE
from mcompose.methods.core.loops.memory import doubles, floats, longs

__all__ = ["finish", "gram", "group_gram", "group_pour", "joined", "pour", "widen_delta"]


@njit(forceinline=True)
def widen_delta(address, kind, first, count, base, out):
    """Widens a tile and subtracts the base's tile, where there is one."""
    widen(address, kind, first, count, out)
    if base != 0:
        values, origin = floats(out, count), floats(base, count)
        for i in range(count):
            values[i] = values[i] - origin[i]


@njit(forceinline=True)
def finish(total, base, divisor, scale, count):
    """``total / divisor * scale``, on top of the base's tile where there is one."""
    values = floats(total, count)
    if base != 0:
        origin = floats(base, count)
        for i in range(count):
            values[i] = origin[i] + values[i] / divisor * scale
    elif divisor != np.float32(1) or scale != np.float32(1):
        for i in range(count):
            values[i] = values[i] / divisor * scale


@njit(forceinline=True)
def _add_share(total, tile, base, weight, is_first, count):
    """``total += weight * (tile - base)``; the first share is the total so far. One pass over the tiles."""
    mixed, values = floats(total, count), floats(tile, count)
    if base != 0:
        origin = floats(base, count)
        if is_first:
            for i in range(count):
                mixed[i] = weight * (values[i] - origin[i])
        else:
            for i in range(count):
                mixed[i] = mixed[i] + weight * (values[i] - origin[i])
    elif is_first:
        for i in range(count):
            mixed[i] = weight * values[i]
    else:
        for i in range(count):
            mixed[i] = mixed[i] + weight * values[i]


def pour(sources, kinds, many, weights, divisor, scale, base, base_kind, out, out_kind, count, tiles):
    """``out = sum(w_i x_i) / divisor * scale``, or the same of deltas on top of the base; counts what is not finite.

    ``base`` is 0 where the sources count from zero. ``tiles`` is room for three.
    """
    table, codes, shares = longs(sources, many), longs(kinds, many), floats(weights, many)
    origin = tiles + 4 * TILE if base != 0 else 0
    tile = tiles + 8 * TILE
    bad = np.int64(0)
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        if base != 0:
            widen(base, base_kind, first, size, origin)
        for source in range(many):
            weight = shares[source]
            widen(table[source], codes[source], first, size, tile)
            _add_share(tiles, tile, origin, weight, source == 0, size)
        finish(tiles, origin, divisor, scale, size)
        bad += narrow(tiles, out, out_kind, first, size)
    return bad


def group_pour(sources, kinds, many, weights, start, stride, groups, base, base_kind, out, out_kind, count, tiles):
    """`pour` with weights of its own for each group: element ``e`` is in group ``e // stride mod groups``.

    ``weights`` has a row of ``groups`` numbers for each source.
    """
    table, codes, shares = longs(sources, many), longs(kinds, many), floats(weights, many * groups)
    origin = tiles + 4 * TILE if base != 0 else 0
    tile = tiles + 8 * TILE
    bad = np.int64(0)
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        total, values = floats(tiles, size), floats(tile, size)
        if base != 0:
            widen(base, base_kind, first, size, origin)
        for i in range(size):
            total[i] = np.float32(0)
        for source in range(many):
            widen_delta(table[source], codes[source], first, size, origin, tile)
            for i in range(size):
                group = (start + first + i) // stride % groups
                total[i] = total[i] + shares[source * groups + group] * values[i]
        finish(tiles, origin, np.float32(1), np.float32(1), size)
        bad += narrow(tiles, out, out_kind, first, size)
    return bad


@njit(forceinline=True)
def joined(sums):
    """The running sums of a tile as one number."""
    total = 0.0
    for lane in range(LANES):
        total += sums[lane]
    return total


@njit(forceinline=True)
def _dot(x, y, count, lanes):
    """``x . y`` of two tiles."""
    sums = doubles(lanes, LANES)
    for lane in range(LANES):
        sums[lane] = 0.0
    whole = count - count % LANES
    for first in range(0, whole, LANES):
        left, right = floats(x + 4 * first, LANES), floats(y + 4 * first, LANES)
        for lane in range(LANES):
            sums[lane] += np.float64(left[lane]) * np.float64(right[lane])
    left, right = floats(x + 4 * whole, LANES), floats(y + 4 * whole, LANES)
    for lane in range(count - whole):
        sums[lane] += np.float64(left[lane]) * np.float64(right[lane])
    return joined(sums)


@njit(forceinline=True)
def _widen_all(table, codes, many, base, base_kind, first, count, origin, tiles):
    """One tile of every source, less the base's tile where there is one."""
    if base != 0:
        widen(base, base_kind, first, count, origin)
    for source in range(many):
        widen_delta(table[source], codes[source], first, count, origin, tiles + 4 * TILE * source)


def gram(sources, kinds, many, base, base_kind, count, totals, tiles):
    """Adds the inner products of all pairs of sources; ``tiles`` is room for one a source and two more.

    Pairs (0, 0), (0, 1), ..., (1, 1), ... each have one number at ``totals``.
    """
    table, codes = longs(sources, many), longs(kinds, many)
    sums = doubles(totals, many * (many + 1) // 2)
    lanes = tiles + 4 * TILE * (many + 1)
    origin = tiles + 4 * TILE * many if base != 0 else 0
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        _widen_all(table, codes, many, base, base_kind, first, size, origin, tiles)
        pair = 0
        for i in range(many):
            for j in range(i, many):
                sums[pair] += _dot(tiles + 4 * TILE * i, tiles + 4 * TILE * j, size, lanes)
                pair += 1


def group_gram(sources, kinds, many, base, base_kind, start, stride, groups, count, totals, tiles):
    """`gram` for each group; every pair has a row of ``groups`` numbers at ``totals``."""
    table, codes = longs(sources, many), longs(kinds, many)
    origin = tiles + 4 * TILE * many if base != 0 else 0
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        _widen_all(table, codes, many, base, base_kind, first, size, origin, tiles)
        pair = 0
        for i in range(many):
            for j in range(i, many):
                left, right = floats(tiles + 4 * TILE * i, size), floats(tiles + 4 * TILE * j, size)
                sums = doubles(totals + 8 * groups * pair, groups)
                for k in range(size):
                    sums[(start + first + k) // stride % groups] += np.float64(left[k]) * np.float64(right[k])
                pair += 1
