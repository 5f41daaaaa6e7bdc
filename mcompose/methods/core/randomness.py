"""Addressed randomness: a draw depends on (seed, method, tensor, source, element) and nothing else.

The tensor is named by its slot, the name that it has in every family and output format, and not by its key in the
output: the same merge written as a native, a composed or a text checkpoint draws the same numbers.

The idea: hash the address once into a 64-bit key, then number the elements with SplitMix64. No state is kept, so any
cut into chunks, any thread and any order of tensors draws the same numbers, and the global generators stay untouched.

A draw has 24 bits, so that a word of 64 serves two elements: in every tile of ``TILE`` elements, word ``i`` of the tile
gives its bits 40 to 63 to element ``i`` and its bits 8 to 31 to element ``TILE / 2 + i``.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

from mcompose.methods.core.arrays import is_numpy
from mcompose.methods.core.loops.layout import TILE
from mcompose.methods.core.method import TensorTask

__all__ = ["address", "addresses", "uniforms", "uniforms_from"]

HALF = TILE // 2

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def address(seed: int, method: str, tensor: str, source: str) -> int:
    """Hashes an address.

    Args:
        seed: The recipe's seed.
        method: Name of the method.
        tensor: Name of the tensor: its slot where the engine merges (`TensorJob.address`).
        source: Name of the source.

    Returns:
        A key of 64 bits.
    """
    text = "\x1f".join((str(int(seed)), method, tensor, source))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def addresses(method: str, task: TensorTask) -> list[int]:
    """Gives the address of every source of a task."""
    return [address(task.seed, method, task.name, source) for source in task.sources]


def uniforms(key: int, like: Any) -> Any:
    """Draws a number in [0, 1) for every element.

    Args:
        key: See `address`.
        like: An array of numpy or torch; gives the shape, the kind and the device.

    Returns:
        Float32 of 24 random bits, in the shape of ``like``.
    """
    if is_numpy(like):
        return _numpy_uniforms(key, like.size).reshape(like.shape)
    return _torch_uniforms(key, like).reshape(like.shape)


def uniforms_from(key: int, start: int, count: int) -> np.ndarray:
    """Draws a number in [0, 1) for some elements of a tensor, the same in whatever pieces they are drawn.

    Args:
        key: See `address`.
        start: First element.
        count: Elements.
    """
    first = start // TILE
    return _numpy_uniforms(key, start - first * TILE + count, tile=first)[start - first * TILE :]


def _numpy_uniforms(key: int, count: int, *, tile: int = 0) -> np.ndarray:
    tiles = -(-count // TILE)
    places = np.arange(tile * HALF + 1, (tile + tiles) * HALF + 1, dtype=np.uint64)
    z = np.uint64(key) + places * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    z = (z ^ (z >> np.uint64(31))).reshape(tiles, 1, HALF)
    draws = np.concatenate([z >> np.uint64(40), (z >> np.uint64(8)) & np.uint64(0xFFFFFF)], axis=1)
    return draws.reshape(-1)[:count].astype(np.float32) * np.float32(2.0**-24)


def _torch_uniforms(key: int, like: Any) -> Any:
    # Torch has no unsigned 64-bit arithmetic: products wrap all the same, shifts lose the copied sign bits.
    count = like.numel()
    tiles = -(-count // TILE)
    z = like.new_ones(tiles * HALF).long().cumsum(0) * _signed(_GOLDEN) + _signed(key)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_2)
    z = (z ^ _shifted(z, 31)).reshape(tiles, 1, HALF)
    halves = like.new_zeros((tiles, 2, HALF))
    halves[:, :1], halves[:, 1:] = _shifted(z, 40), (z >> 8) & 0xFFFFFF
    return halves.reshape(-1)[:count] * 2.0**-24


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Any, bits: int) -> Any:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
