"""The kernels of ``mcompose.methods.core.loops`` as functions on numpy arrays.

A chunk of a tensor is a one-dimensional, contiguous array of float16, float32, float64 or uint16, which stands for
bfloat16 (numpy does not have it). Every kernel accepts chunks of any mix of these types.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcompose.methods.core.compiled import Kernel
from mcompose.methods.core.loops.layout import BF16, F16, F32, F64, TILE

__all__ = [
    "Pruning",
    "abs_sums",
    "convert",
    "count_keys",
    "count_nan",
    "gram",
    "group_gram",
    "grouped_sum",
    "prune_and_sum",
    "rank_probabilities",
    "uniforms",
    "weighted_sum",
]

Array = np.ndarray

_KINDS = {"uint16": BF16, "float16": F16, "float32": F32, "float64": F64}
_A, _I, _F = "address", "int64", "float32"

_WEIGHTED_SUM = Kernel("blending", "pour", _A, _A, _I, _A, _F, _F, _A, _I, _A, _I, _I, _A)
_GROUPED_SUM = Kernel("blending", "group_pour", _A, _A, _I, _A, _I, _I, _I, _A, _I, _A, _I, _I, _A)
_GRAM = Kernel("blending", "gram", _A, _A, _I, _A, _I, _I, _A, _A)
_GROUP_GRAM = Kernel("blending", "group_gram", _A, _A, _I, _A, _I, _I, _I, _I, _I, _A, _A)
_COUNT_NAN = Kernel("formats", "count_nan", _A, _I, _I, _A)
_COUNT_KEYS = Kernel("pruning", "count_keys", _A, _I, _A, _I, _I, _A, _A, _A, _A)
_ABS_SUMS = Kernel("pruning", "abs_sums", _A, _A, _I, _A, _I, _A, _I, _I, _A, _A)
_PRUNE_AND_SUM = Kernel("pruning", "prune_pour", _A, _A, _I, _A, _A, _I, _F, _F, _A, _I, _I, _A, _I, _I, _A)
_RANK_PROBABILITIES = Kernel("pruning", "rank_chances", _A, _I, _A, _I, _I, _I, _F, _F, _A, _A)
_UNIFORMS = Kernel("pruning", "uniforms", "uint64", _A, _I, _A)

_ROOM = threading.local()


def weighted_sum(
    sources: Sequence[Array],
    weights: Array,
    out: Array,
    *,
    base: Array | None = None,
    divisor: float = 1.0,
    scale: float = 1.0,
) -> int:
    """Computes ``out = sum(weights * sources) / divisor * scale``; with a base, of the deltas, and adds the base.

    Args:
        sources: Chunks of the same length.
        weights: float32, one weight for each source.
        out: Chunk of the result.
        base: Chunk of the base; None merges the sources themselves.
        divisor: Divisor of the sum.
        scale: Factor of the divided sum.

    Returns:
        Number of results that are not finite. An element that is not finite in a source is not finite in the result.
    """
    table, kinds = _table(sources, out.size)
    origin = _origin(base, out.size)
    _check_weights(weights, len(sources))
    return _WEIGHTED_SUM(
        table, kinds, len(sources), weights, divisor, scale, *origin, out, _kind(out), out.size, _room(3)
    )


def convert(chunk: Array, out: Array) -> int:
    """Rounds a chunk once into ``out``'s element type; returns how many results are not finite."""
    return weighted_sum([chunk], np.ones(1, np.float32), out)


def grouped_sum(
    sources: Sequence[Array], weights: Array, out: Array, *, start: int, stride: int, base: Array | None = None
) -> int:
    """`weighted_sum` with weights of its own for each group of elements.

    Args:
        sources: Chunks of one length.
        weights: float32, shape (sources, groups); element ``e`` of the tensor is in group ``e // stride mod groups``.
        out: The result's chunk.
        start: Place of the chunk's first element in the tensor.
        stride: 1 where groups are columns, the length of a row where they are rows.
        base: What the sources count from.

    Returns:
        How many results are not finite.
    """
    table, kinds = _table(sources, out.size)
    groups = weights.shape[1]
    _check_weights(weights, len(sources) * groups)
    origin = _origin(base, out.size)
    return _GROUPED_SUM(
        table, kinds, len(sources), weights, start, stride, groups, *origin, out, _kind(out), out.size, _room(3)
    )


def gram(sources: Sequence[Array], totals: Array, *, base: Array | None = None) -> None:
    """Adds the inner products of all pairs of sources, one chunk's part.

    Args:
        sources: Chunks of one length, which start at a multiple of TILE elements of the tensor.
        totals: float64, one a pair: (0, 0), (0, 1), ..., (1, 1), ...
        base: What the sources count from.
    """
    size = sources[0].size
    table, kinds = _table(sources, size)
    _GRAM(table, kinds, len(sources), *_origin(base, size), size, totals, _room(len(sources) + 2))


def group_gram(sources: Sequence[Array], totals: Array, *, start: int, stride: int, base: Array | None = None) -> None:
    """`gram` for each group of elements (see `grouped_sum`); ``totals`` has shape (pairs, groups)."""
    size = sources[0].size
    table, kinds = _table(sources, size)
    groups, room = totals.shape[1], _room(len(sources) + 1)
    _GROUP_GRAM(table, kinds, len(sources), *_origin(base, size), start, stride, groups, size, totals, room)


def count_nan(chunk: Array) -> int:
    """Counts the NaNs of a chunk."""
    return _COUNT_NAN(chunk, _kind(chunk), chunk.size, _room(1))


def count_keys(source: Array, base: Array | None, *, high: Array | None, windows: Array, low: Array) -> None:
    """Counts a delta's magnitudes by their upper 15 bits, and by their lower 16 where the upper ones are in a window.

    Args:
        source: The chunk.
        base: What it counts from.
        high: int64, (COUNTERS, HIGH_BINS), to be summed; None for no such count.
        windows: int64, first bins of two windows of WINDOW bins; -1 for none.
        low: int64, (2, WINDOW, LOW_BINS).
    """
    where = _origin(base, source.size)
    counts = 0 if high is None else high
    _COUNT_KEYS(source, _kind(source), *where, source.size, counts, windows, low, _room(2))


def abs_sums(sources: Sequence[Array], base: Array | None, cuts: Array, totals: Array, *, start: int) -> None:
    """Adds up the deltas' absolute values before and after their cuts.

    Args:
        sources: Chunks of one length.
        base: What they count from.
        cuts: int64, (sources, COLUMNS), as in `Pruning`.
        totals: float64, (sources, 2): before and after.
        start: Place of the chunk's first element in the tensor, a multiple of TILE.
    """
    size = sources[0].size
    table, kinds = _table(sources, size)
    _ABS_SUMS(table, kinds, len(sources), *_origin(base, size), cuts, _aligned(start), size, totals, _room(4))


@dataclass
class Pruning:
    """What `prune_and_sum` does to the deltas.

    Args:
        cuts: int64, (sources, COLUMNS): how each is pruned; counters in it are moved on.
        numbers: float32, (sources, NUMBERS): what each is worth.
        combine: ADD_UP, ELECT or ELECT_MEAN.
        divisor: The sum is divided by it,
        scale: then multiplied by it.
    """

    cuts: Array
    numbers: Array
    combine: int
    divisor: float
    scale: float


def prune_and_sum(sources: Sequence[Array], pruning: Pruning, out: Array, *, base: Array | None, start: int) -> int:
    """Prunes every delta, makes up for what was dropped, combines, adds the base.

    Args:
        sources: Chunks of one length.
        pruning: How.
        out: The result's chunk.
        base: What the sources count from.
        start: Place of the chunk's first element in the tensor, a multiple of TILE.

    Returns:
        How many results are not finite.
    """
    table, kinds = _table(sources, out.size)
    how = (pruning.cuts, pruning.numbers, pruning.combine, pruning.divisor, pruning.scale)
    where = (*_origin(base, out.size), _aligned(start), out, _kind(out), out.size, _room(len(sources) + 5))
    return _PRUNE_AND_SUM(table, kinds, len(sources), *how, *where)


def rank_probabilities(source: Array, base: Array | None, *, length: int, low: float, span: float, out: Array) -> None:
    """Computes a probability for each element: ``low`` plus ``span`` times its relative magnitude rank in its row."""
    room = np.empty(28 * length + 8 * 2049 + 64, np.uint8)
    _RANK_PROBABILITIES(source, _kind(source), *_origin(base, source.size), source.size, length, low, span, out, room)


def uniforms(key: int, out: Array) -> None:
    """Numbers in [0, 1) of 24 bits for a tensor's first elements (see `randomness`), float32."""
    _UNIFORMS(int(key), out, out.size, _room(1))


def _aligned(start: int) -> int:
    if start % TILE:
        raise ValueError(f"A chunk that starts at element {start} does not start a tile of {TILE}.")
    return start


def _check_weights(weights: Array, count: int) -> None:
    if weights.dtype != np.float32 or weights.size != count or not weights.flags.c_contiguous:
        raise TypeError(f"{count} float32 weights are needed, not {weights.size} of {weights.dtype}.")


def _kind(chunk: Array) -> int:
    kind = _KINDS.get(chunk.dtype.name)
    if kind is None or not chunk.flags.c_contiguous:
        raise TypeError(f"Kernels need contiguous arrays of a float type, not {chunk.dtype} with this layout.")
    return kind


def _table(chunks: Sequence[Array], size: int) -> tuple[Array, Array]:
    """Addresses and element types of several chunks."""
    if any(chunk.size != size for chunk in chunks):
        raise TypeError(f"Chunks of {[chunk.size for chunk in chunks]} elements cannot make one of {size}.")
    kinds = np.array([_kind(chunk) for chunk in chunks], np.int64)
    return np.array([chunk.ctypes.data for chunk in chunks], np.int64), kinds


def _origin(base: Array | None, size: int) -> tuple[Array | int, int]:
    if base is None:
        return 0, F32
    if base.size != size:
        raise TypeError(f"A base of {base.size} elements does not fit a chunk of {size}.")
    return base, _kind(base)


def _room(tiles: int) -> Array:
    """Room for some tiles, one for each thread; its content is anything."""
    room = getattr(_ROOM, "tiles", None)
    if room is None or room.size < tiles * TILE:
        room = _ROOM.tiles = np.empty(tiles * TILE, np.float32)
    return room
