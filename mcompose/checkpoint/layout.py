"""Plans the files and offsets of all output tensors before anything is computed.

The headers depend only on names, dtypes and shapes, so they are written first, and every tensor has its final offset
from the start: any thread may write any piece in any order, nothing is buffered and nothing is written twice. The same
tensors in the same order always give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcompose.checkpoint.tensor import DTYPE_BITS

__all__ = ["INDEX_FILE", "SINGLE_FILE", "Layout", "Place", "ShardLayout", "TensorSpec", "plan_layout"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

TensorSpec = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype, shape."""


@dataclass(frozen=True)
class ShardLayout:
    """One file of the output.

    Args:
        filename: Final name of the file.
        header: First bytes of the file: the length and the padded JSON. The data follows, at a multiple of 8.
        size: Size of the whole file, in bytes.
        offsets: Tensor name to the first byte of its data, from the start of the file, in file order.
        lengths: Tensor name to the size of its data, in bytes.
    """

    filename: str
    header: bytes
    size: int
    offsets: Mapping[str, int]
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class Place:
    """Place of one tensor: file, first byte, and number of bytes."""

    filename: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """All files of the output's weights.

    Args:
        shards: The files, in order.
        index_json: Text of ``model.safetensors.index.json``; None when there is only one file.
    """

    shards: tuple[ShardLayout, ...]
    index_json: str | None

    @cached_property
    def places(self) -> dict[str, Place]:
        """Tensor name to its place, in file order."""
        return {
            name: Place(shard.filename, offset, shard.lengths[name])
            for shard in self.shards
            for name, offset in shard.offsets.items()
        }

    @property
    def total_bytes(self) -> int:
        """Size of all files together, in bytes, including headers."""
        return sum(shard.size for shard in self.shards)


def plan_layout(
    tensors: Sequence[TensorSpec], *, max_shard_size: int, metadata: Mapping[str, str] | None = None
) -> Layout:
    """Assigns tensors to files.

    Tensors are assigned to shards in the given order; a shard ends before the tensor that would exceed the limit, so a
    tensor larger than the limit is alone in its shard. Inside a shard, wider dtypes come first: every tensor then
    starts at a multiple of its element size, so that readers can map it without a copy.

    Args:
        tensors: Name, dtype and shape of every tensor, in the order of the output.
        max_shard_size: Largest size of the data in one file, in bytes (except for a single larger tensor). Headers do
            not count, as in transformers.
        metadata: Entries for the files' ``__metadata__``, in addition to ``format: pt``.

    Returns:
        The layout; one ``model.safetensors`` when everything fits, else numbered shards and an index.

    Raises:
        ValueError: Two tensors have the same name, a dtype is unknown, or a tensor does not end on a whole byte.
    """
    lengths = {name: _length(name, dtype, shape) for name, dtype, shape in tensors}
    if len(lengths) != len(tensors):
        raise ValueError("Two tensors of the layout have the same name.")
    groups = _split_into_shards(tensors, lengths, max_shard_size)
    metadata = {"format": "pt", **dict(sorted((metadata or {}).items()))}
    shards = tuple(
        _lay_out(_shard_name(number, len(groups)), group, lengths, metadata)
        for number, group in enumerate(groups, start=1)
    )
    return Layout(shards, _index(shards) if len(shards) > 1 else None)


def _split_into_shards(
    tensors: Sequence[TensorSpec], lengths: Mapping[str, int], max_shard_size: int
) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in tensors:
        length = lengths[tensor[0]]
        if groups[-1] and filled + length > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += length
    return groups


def _lay_out(
    filename: str, group: Sequence[TensorSpec], lengths: Mapping[str, int], metadata: Mapping[str, str]
) -> ShardLayout:
    group = sorted(group, key=lambda tensor: -_alignment(tensor[1]))
    table: dict[str, object] = {"__metadata__": metadata}
    starts: dict[str, int] = {}
    position = 0
    for name, dtype, shape in group:
        starts[name] = position
        position += lengths[name]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [starts[name], position]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return ShardLayout(
        filename,
        header,
        len(header) + position,
        {name: len(header) + start for name, start in starts.items()},
        {name: lengths[name] for name in starts},
    )


def _length(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    if dtype not in DTYPE_BITS:
        raise ValueError(f"Tensor '{name}' has the unknown dtype '{dtype}'.")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise ValueError(f"Tensor '{name}' of shape {shape} does not end on a whole byte in {dtype}.")
    return bits // 8


def _alignment(dtype: str) -> int:
    """Returns the element size in bytes; 0 for dtypes below 8 bits, which come last."""
    return DTYPE_BITS[dtype] // 8


def _shard_name(number: int, count: int) -> str:
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(shards: Sequence[ShardLayout]) -> str:
    weight_map = {name: shard.filename for shard in shards for name in shard.offsets}
    total = sum(sum(shard.lengths.values()) for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, ensure_ascii=False, indent=2) + "\n"
