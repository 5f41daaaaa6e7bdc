"""The header of a safetensors file, read and checked without the safetensors library.

A file is an 8-byte little-endian length, that many bytes of JSON, and the data. The JSON gives the dtype, shape and
offsets of every tensor. A header may come from an untrusted source, so everything in it is checked: each tensor must
have a known dtype and the length of its shape, and the tensors together must fill the file without gaps and overlaps.
Only the header is read; its size is limited by the format (100 MB) and by the file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mcompose.checkpoint.tensor import DTYPE_BITS, TensorEntry
from mcompose.errors import CheckpointError

__all__ = [
    "MAX_HEADER_BYTES",
    "Header",
    "parse_header",
    "parse_json_object",
    "read_header",
    "read_json_object",
]

MAX_HEADER_BYTES = 100_000_000
"""Limit of the format."""

MAX_JSON_BYTES = 64 * 1024 * 1024
"""Larger JSON files (config, index) are refused unread; the largest known index has a few megabytes."""

_DAMAGED = "Fetch it again: the file is damaged or was not written by safetensors."


@dataclass(frozen=True)
class Header:
    """Header of one safetensors file.

    Args:
        entries: The tensors, in the order of their data in the file.
        metadata: ``__metadata__`` of the file; empty when it does not have any.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors and the metadata of the file.

    Raises:
        CheckpointError: The file is missing, unreadable or truncated, or its header is not valid.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"'{path}' is not a file.")
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            prefix = handle.read(8)
            prefix += handle.read(_header_length(prefix, path, size=size))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return parse_header(prefix, file=path, size=size)


def parse_header(prefix: bytes, *, file: Path, size: int) -> Header:
    """Checks the first bytes of a safetensors file.

    Args:
        prefix: The 8-byte length and the whole JSON header.
        file: Path of the file, for the entries and for messages; it need not exist.
        size: Size of the whole file in bytes.

    Returns:
        The tensors and the metadata of the file.

    Raises:
        CheckpointError: The header is not valid; the message names the file and the tensor.
    """
    length = _header_length(prefix, file, size=size)
    raw = prefix[8 : 8 + length]
    if len(raw) < length:
        raise CheckpointError(f"'{file}' ends inside its header.", hint=_DAMAGED)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"The header of '{file}' is not a JSON object.", hint=_DAMAGED)
    table = parse_json_object(raw, file=file, what="header of ", unique=True)
    metadata = _metadata(table.pop("__metadata__", {}), file)
    start = 8 + length
    entries = [_entry(key, value, file=file, start=start, size=size) for key, value in table.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_contiguous(entries, file, start=start, size=size)
    return Header(tuple(entries), metadata)


def read_json_object(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """Reads a JSON file that contains one object; a byte order mark is accepted.

    Args:
        path: The file.
        unique: Whether to refuse objects with repeated keys (JSON keeps the last one).

    Raises:
        CheckpointError: The file is missing, too large, or not a JSON object.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"'{path}' is not a file.")
        with path.open("rb") as handle:
            raw = handle.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(f"'{path}' is larger than {MAX_JSON_BYTES} bytes, the limit for such files.")
    return parse_json_object(raw, file=path, unique=unique)


def parse_json_object(raw: bytes, *, file: Path, what: str = "", unique: bool = False) -> dict[str, Any]:
    """Parses one JSON object; any defect raises a ``CheckpointError``.

    Args:
        raw: The text in UTF-8.
        file: File of the text, for messages.
        what: Words before the file's name in messages.
        unique: Whether to be as strict as the safetensors library, and to refuse objects with repeated keys.
    """
    try:
        hooks: dict[str, Any] = {"object_pairs_hook": _unique_pairs} if unique else {}
        if unique and b"-0" in raw:  # a hook for every number takes longer than everything else
            hooks["parse_int"] = _integer
        value = json.loads(raw.decode("utf-8-sig"), **hooks)
    except RecursionError:
        raise CheckpointError(f"The {what}'{file}' is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise CheckpointError(f"The {what}'{file}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"The {what}'{file}' is not a JSON object.")
    return cast("dict[str, Any]", value)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {_quote(next(key for key in names if names.count(key) > 1))} occurs twice")
    return table


def _integer(text: str) -> int:
    if text == "-0":  # an integer for Python, a fraction for the safetensors library
        raise ValueError("-0 is not an integer")
    return int(text)


def _header_length(prefix: bytes, file: Path, *, size: int) -> int:
    if size < 8 or len(prefix) < 8:
        raise CheckpointError(f"'{file}' has {size} bytes; a safetensors file has at least 8.", hint=_DAMAGED)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"'{file}' declares a header of {length} bytes; the format allows {MAX_HEADER_BYTES}.",
            hint=_DAMAGED,
        )
    if length < 2 or 8 + length > size:
        raise CheckpointError(f"'{file}' declares a header of {length} bytes, but the file has {size}.", hint=_DAMAGED)
    return length


def _metadata(value: Any, file: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"The metadata of '{file}' must map names to text.", hint=_DAMAGED)
    return cast("dict[str, str]", value)


def _entry(key: str, value: Any, *, file: Path, start: int, size: int) -> TensorEntry:
    """Returns one tensor of the header, with its offset from the start of the file."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"Tensor {_quote(key)} in '{file}' {reason}.", hint=_DAMAGED)

    if not _is_text(key):
        raise refuse("has a name that is not valid text")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse(f"has the unknown dtype {_quote(dtype)}")
    if not _are_counts(shape):
        raise refuse("has a shape that is not a list of non-negative integers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("has data_offsets that are not a pair of ascending positions")
    begin, end = offsets
    if start + end > size:
        raise CheckpointError(
            f"'{file}' is truncated: its header requires at least {start + end} bytes, the file has {size}.",
            hint=_DAMAGED,
        )
    bits = _bit_count(shape, DTYPE_BITS[dtype], limit=8 * (end - begin))
    if bits != 8 * (end - begin):
        raise refuse(f"is {end - begin} bytes long, which does not match {dtype} and its shape")
    return TensorEntry(key, dtype, tuple(shape), file, start + begin, end - begin)


def _bit_count(shape: list[int], bits: int, *, limit: int) -> int:
    """Returns the number of bits of a tensor; stops counting above the limit, so that absurd shapes cost nothing."""
    if 0 in shape:
        return 0
    for size in shape:
        bits *= size
        if bits > limit:
            break
    return bits


def _check_contiguous(entries: list[TensorEntry], file: Path, *, start: int, size: int) -> None:
    position = start
    for entry in entries:
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise CheckpointError(
                f"Tensor {_quote(entry.key)} in '{file}' {fault} (byte {entry.offset}, expected {position}).",
                hint=_DAMAGED,
            )
        position += entry.nbytes
    if position != size:
        raise CheckpointError(f"'{file}' has {size} bytes; its header accounts for {position}.", hint=_DAMAGED)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in cast("list[Any]", value))


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _quote(value: object) -> str:
    """Formats an untrusted value for a message: quoted, ASCII, short."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."
