"""Pruning, election and sums of deltas: the loops of the TIES, DARE, breadcrumbs and DELLA families.

A magnitude's *key* is the float32 bit pattern without its sign: for such integers the order is the order of the
magnitudes, so ranks can be counted instead of sorted. What is dropped is multiplied by zero, not overwritten: a NaN
stays a NaN and is noticed when the result is rounded.

How a source is pruned is a row of integers (``CODE`` to ``DIVIDE``), what its values are worth a row of float32 numbers
(``RATIO`` to ``SHARE``).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mcompose.methods.core.loops.blending import finish, joined, widen_delta
from mcompose.methods.core.loops.formats import narrow, widen
from mcompose.methods.core.loops.layout import (
    ADD_UP,
    CHANCES,
    CODE,
    COLUMNS,
    COUNTERS,
    DIVIDE,
    DIVISOR,
    ELECT_MEAN,
    HIGH,
    HIGH_BINS,
    HIGH_TIES,
    KEEP_BAND,
    KEEP_BY_CHANCE,
    KEEP_NONE,
    KEEP_RANDOM,
    KEY,
    LANES,
    LOW,
    LOW_BINS,
    LOW_TIES,
    NUMBERS,
    RATIO,
    SEEN_HIGH,
    SEEN_LOW,
    SHARE,
    TILE,
    VOTE,
    WEIGHT,
    WINDOW,
)
from mcompose.methods.core.loops.memory import as_word, doubles, floats, longs, words

__all__ = ["abs_sums", "count_keys", "prune_pour", "rank_chances", "uniforms"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def count_keys(source, kind, base, base_kind, count, high, windows, low, tiles):
    """Counts the upper 15 bits of the keys, and the lower 16 bits of those in some windows of upper bits.

    ``high`` has ``COUNTERS`` tables of ``HIGH_BINS`` int64 places; 0 for no such count. ``windows`` are the first bins
    of two windows of ``WINDOW`` bins, -1 for none; ``low`` has a table of ``LOW_BINS`` places for each of their bins.
    """
    origin = tiles + 4 * TILE if base != 0 else 0
    first_window, second_window = longs(windows, 2)[0], longs(windows, 2)[1]
    second_low = low + 8 * WINDOW * LOW_BINS
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        if base != 0:
            widen(base, base_kind, first, size, origin)
        widen_delta(source, kind, first, size, origin, tiles)
        if high != 0:
            _count_high(tiles, size, high)
        if first_window >= 0:
            _count_low(tiles, size, first_window, low)
        if second_window >= 0:
            _count_low(tiles, size, second_window, second_low)


@njit(forceinline=True)
def _count_high(tile, count, high):
    keys, tables = words(tile, count), longs(high, COUNTERS * HIGH_BINS)
    whole = count - count % COUNTERS
    for i in range(0, whole, COUNTERS):
        for turn in range(COUNTERS):
            tables[turn * HIGH_BINS + np.int64((keys[i + turn] & np.uint32(0x7FFFFFFF)) >> np.uint32(16))] += 1
    for i in range(whole, count):
        tables[np.int64((keys[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16))] += 1


@njit(forceinline=True)
def _count_low(tile, count, window, low):
    keys, tables = words(tile, count), longs(low, WINDOW * LOW_BINS)
    start = np.uint32(window << 16)
    for i in range(count):
        place = np.uint32((keys[i] & np.uint32(0x7FFFFFFF)) - start)
        if place < np.uint32(WINDOW * LOW_BINS):
            tables[np.int64(place)] += 1


@njit(forceinline=True)
def _magnitude(number):
    return np.int32(as_word(number) & np.uint32(0x7FFFFFFF))


@njit(forceinline=True)
def _keep_edge(values, count, row):
    """The band where the last kept or first dropped of several equal magnitudes lies in this tile."""
    low, high = np.int32(row[LOW]), np.int32(row[HIGH])
    for i in range(count):
        key = _magnitude(values[i])
        keep = (key > low) and (key < high)
        if key == low:
            keep = row[SEEN_LOW] < row[LOW_TIES]
            row[SEEN_LOW] += 1
        if key == high:
            keep = (key > low or keep) and row[SEEN_HIGH] >= row[HIGH_TIES]
            row[SEEN_HIGH] += 1
        values[i] = values[i] * (np.float32(1) if keep else np.float32(0))


@njit(forceinline=True)
def _keep_band(values, count, row):
    """Zeroes all but the keys above ``LOW`` and not above ``HIGH``.

    Of the elements equal to ``LOW`` the first ``LOW_TIES`` are kept; of those equal to ``HIGH`` the first
    ``HIGH_TIES`` are dropped, in element order; ``SEEN_LOW`` and ``SEEN_HIGH`` count those that came before.
    """
    low, high = np.int32(row[LOW]), np.int32(row[HIGH])
    lows, highs = np.int32(0), np.int32(0)
    for i in range(count):
        key = _magnitude(values[i])
        lows = np.int32(lows + np.int32(key == low))
        highs = np.int32(highs + np.int32(key == high))
    none_low, all_low = row[SEEN_LOW] >= row[LOW_TIES], row[SEEN_LOW] + lows <= row[LOW_TIES]
    all_high, none_high = row[SEEN_HIGH] >= row[HIGH_TIES], row[SEEN_HIGH] + highs <= row[HIGH_TIES]
    if (lows > 0 and not none_low and not all_low) or (highs > 0 and not none_high and not all_high):
        _keep_edge(values, count, row)
        return
    floor = low if lows == 0 or none_low else np.int32(low - 1)
    ceiling = high if highs == 0 or not all_high else np.int32(high + 1)
    for i in range(count):
        key = _magnitude(values[i])
        values[i] = values[i] * (np.float32(1) if (key > floor) & (key < ceiling) else np.float32(0))
    row[SEEN_LOW] += lows
    row[SEEN_HIGH] += highs


@njit(forceinline=True)
def _word(key, number):
    """Word ``number`` of the SplitMix64 sequence of ``key``."""
    z = np.uint64(key + np.uint64(number + 1) * GOLDEN)
    z = np.uint64((z ^ (z >> np.uint64(30))) * MIX_1)
    z = np.uint64((z ^ (z >> np.uint64(27))) * MIX_2)
    return np.uint64(z ^ (z >> np.uint64(31)))


@njit(forceinline=True)
def _draw(key, place, out):
    """24 random bits for every element of a whole tile: a word serves one of the first half and one of the second."""
    half, number = TILE // 2, place // 2
    first, second = words(out, half), words(out + 4 * half, half)
    for i in range(half):
        word = _word(key, number + i)
        first[i] = np.uint32(word >> np.uint64(40))
        second[i] = np.uint32(word >> np.uint64(8)) & np.uint32(0xFFFFFF)


@njit(forceinline=True)
def _cut(tile, first, start, count, row, spare):
    """Prunes one tile of deltas in place; it begins with element ``first`` of a chunk that begins with ``start``."""
    values, draws, code = floats(tile, count), words(spare, count), row[CODE]
    if code == KEEP_BAND:
        _keep_band(values, count, row)
    elif code == KEEP_RANDOM:
        limit = np.uint32(row[LOW])
        _draw(np.uint64(row[KEY]), start + first, spare)
        for i in range(count):
            values[i] = values[i] * (np.float32(1) if draws[i] < limit else np.float32(0))
    elif code == KEEP_BY_CHANCE:
        chances = floats(row[CHANCES] + 4 * first, count)
        _draw(np.uint64(row[KEY]), start + first, spare)
        for i in range(count):
            number = np.float32(np.int32(draws[i])) * np.float32(2.0**-24)
            values[i] = values[i] * (np.float32(1) if number < chances[i] else np.float32(0))
        if row[DIVIDE] != 0:
            for i in range(count):
                values[i] = values[i] / chances[i]
    elif code == KEEP_NONE:
        for i in range(count):
            values[i] = values[i] * np.float32(0)


@njit(forceinline=True)
def _magnitudes(tile, count, lanes):
    """Sum of absolute values of a tile: four are added in float32 before they join a float64 sum."""
    sums = doubles(lanes, LANES)
    for lane in range(LANES):
        sums[lane] = 0.0
    whole = count - count % (4 * LANES)
    for first in range(0, whole, 4 * LANES):
        a, b = floats(tile + 4 * first, LANES), floats(tile + 4 * (first + LANES), LANES)
        c, d = floats(tile + 4 * (first + 2 * LANES), LANES), floats(tile + 4 * (first + 3 * LANES), LANES)
        for lane in range(LANES):
            sums[lane] += np.float64((abs(a[lane]) + abs(b[lane])) + (abs(c[lane]) + abs(d[lane])))
    rest = floats(tile + 4 * whole, count - whole)
    for i in range(count - whole):
        sums[i % LANES] += np.float64(abs(rest[i]))
    return joined(sums)


def abs_sums(sources, kinds, many, base, base_kind, cuts, start, count, totals, tiles):
    """Adds up absolute values before and after the cuts, two numbers a source; ``tiles`` is room for four."""
    table, codes, sums = longs(sources, many), longs(kinds, many), doubles(totals, 2 * many)
    origin = tiles + 4 * TILE if base != 0 else 0
    spare, lanes = tiles + 8 * TILE, tiles + 12 * TILE
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        if base != 0:
            widen(base, base_kind, first, size, origin)
        for source in range(many):
            widen_delta(table[source], codes[source], first, size, origin, tiles)
            sums[2 * source] += _magnitudes(tiles, size, lanes)
            _cut(tiles, first, start, size, longs(cuts + 8 * COLUMNS * source, COLUMNS), spare)
            sums[2 * source + 1] += _magnitudes(tiles, size, lanes)


@njit(forceinline=True)
def _worth(values, count, ratio, divisor):
    """Makes up for what was dropped."""
    if ratio != np.float32(1):
        for i in range(count):
            values[i] = values[i] * ratio
    if divisor != np.float32(1):
        for i in range(count):
            values[i] = values[i] / divisor


@njit(forceinline=True)
def _add_up(tiles, many, numbers, total, count):
    """``total = sum(WEIGHT * values)``."""
    mixed = floats(total, count)
    for source in range(many):
        weight, values = numbers[source * NUMBERS + WEIGHT], floats(tiles + 4 * TILE * source, count)
        if source == 0:
            for i in range(count):
                mixed[i] = weight * values[i]
        else:
            for i in range(count):
                mixed[i] = mixed[i] + weight * values[i]


@njit(forceinline=True)
def _vote(tiles, many, numbers, vote, count):
    """``vote = sum(VOTE * values)``: its sign is the elected one; plus wins at zero."""
    total = floats(vote, count)
    for i in range(count):
        total[i] = np.float32(0)
    for source in range(many):
        share, values = numbers[source * NUMBERS + VOTE], floats(tiles + 4 * TILE * source, count)
        for i in range(count):
            total[i] = total[i] + share * values[i]


@njit(forceinline=True)
def _agrees(ballot, vote):
    """1 where a ballot has the elected sign."""
    turned = ballot if vote >= np.float32(0) else -ballot
    return np.float32(1) if turned > np.float32(0) else np.float32(0)


@njit(forceinline=True)
def _add_agreeing(tiles, many, numbers, total, count):
    """``total = sum(WEIGHT * values)`` of those that have the elected sign."""
    mixed, vote = floats(total, count), floats(total + 4 * TILE, count)
    for i in range(count):
        mixed[i] = np.float32(0)
    for source in range(many):
        share, weight = numbers[source * NUMBERS + VOTE], numbers[source * NUMBERS + WEIGHT]
        values = floats(tiles + 4 * TILE * source, count)
        for i in range(count):
            mixed[i] = mixed[i] + weight * values[i] * _agrees(share * values[i], vote[i])


@njit(forceinline=True)
def _divide_by_agreeing(tiles, many, numbers, total, count):
    """Divides by the sum of ``SHARE`` of those that have the elected sign, where there are any."""
    mixed, vote, parts = floats(total, count), floats(total + 4 * TILE, count), floats(total + 8 * TILE, count)
    for i in range(count):
        parts[i] = np.float32(0)
    for source in range(many):
        share, part = numbers[source * NUMBERS + VOTE], numbers[source * NUMBERS + SHARE]
        values = floats(tiles + 4 * TILE * source, count)
        for i in range(count):
            parts[i] = parts[i] + part * _agrees(share * values[i], vote[i])
    for i in range(count):
        mixed[i] = mixed[i] / (parts[i] if parts[i] != np.float32(0) else np.float32(1))


def prune_pour(
    sources, kinds, many, cuts, numbers, combine, divisor, scale, base, base_kind, start, out, out_kind, count, tiles
):
    """Prunes, makes up for it, combines, adds the base, rounds; counts what is not finite.

    ``tiles`` is room for one a source and five more.
    """
    table, codes = longs(sources, many), longs(kinds, many)
    worth = floats(numbers, many * NUMBERS)
    total = tiles + 4 * TILE * many
    spare = total + 12 * TILE
    origin = total + 16 * TILE if base != 0 else 0
    bad = np.int64(0)
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        if base != 0:
            widen(base, base_kind, first, size, origin)
        for source in range(many):
            tile = tiles + 4 * TILE * source
            widen_delta(table[source], codes[source], first, size, origin, tile)
            _cut(tile, first, start, size, longs(cuts + 8 * COLUMNS * source, COLUMNS), spare)
            _worth(floats(tile, size), size, worth[source * NUMBERS + RATIO], worth[source * NUMBERS + DIVISOR])
        if combine == ADD_UP:
            _add_up(tiles, many, worth, total, size)
        else:
            _vote(tiles, many, worth, total + 4 * TILE, size)
            _add_agreeing(tiles, many, worth, total, size)
            if combine == ELECT_MEAN:
                _divide_by_agreeing(tiles, many, worth, total, size)
        finish(total, origin, divisor, scale, size)
        bad += narrow(total, out, out_kind, first, size)
    return bad


@njit(forceinline=True)
def _sort_row(keys, order, spare, counts, length):
    """Lists a row's elements from the smallest key up, equal ones in element order, by counting 11 bits at a time."""
    for i in range(length):
        order[i] = i
    for shift in range(0, 33, 11):
        bits = np.uint32(shift)
        for bin_ in range(2049):
            counts[bin_] = 0
        for i in range(length):
            counts[np.int64((keys[i] >> bits) & np.uint32(0x7FF)) + 1] += 1
        for bin_ in range(2048):
            counts[bin_ + 1] += counts[bin_]
        for i in range(length):
            bin_of = np.int64((keys[order[i]] >> bits) & np.uint32(0x7FF))
            spare[counts[bin_of]] = order[i]
            counts[bin_of] += 1
        for i in range(length):
            order[i] = spare[i]


def rank_chances(source, kind, base, base_kind, count, length, low, span, out, rows):
    """Gives each element a chance by its rank in its row of ``length``: ``low`` for the smallest, up by ``span``.

    ``rows`` is room for two rows of float32 numbers, two of int64 numbers, and 2,049 int64 counters.
    """
    origin = rows + 4 * length if base != 0 else 0
    keys, order = words(rows, length), longs(rows + 8 * length, length)
    spare, counts = longs(rows + 16 * length, length), longs(rows + 24 * length, 2049)
    chances = floats(out, count)
    for first in range(0, count, length):
        if base != 0:
            widen(base, base_kind, first, length, origin)
        widen_delta(source, kind, first, length, origin, rows)
        for i in range(length):
            keys[i] = keys[i] & np.uint32(0x7FFFFFFF)
        _sort_row(keys, order, spare, counts, length)
        for rank in range(length):
            place = np.float32(rank) / np.float32(length - 1) if length > 1 else np.float32(0.5)
            chances[first + order[rank]] = low + place * span


def uniforms(key, out, count, tiles):
    """Numbers in [0, 1) of 24 bits: the draws of a tensor's first elements."""
    draws, drawn = floats(out, count), words(tiles, TILE)
    for first in range(0, count, TILE):
        size = min(TILE, count - first)
        _draw(np.uint64(key), first, tiles)
        for i in range(size):
            draws[first + i] = np.float32(np.int32(drawn[i])) * np.float32(2.0**-24)
