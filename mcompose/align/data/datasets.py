"""Reads records of one dataset, by number or as a stream: JSON, JSON lines, Parquet, folders of these, and the Hub.

A JSON lines file is indexed by the start and length of each line and read one line at a time, so that a large file
costs a few bytes of memory per record. Parquet and the Hub are read with Hugging Face ``datasets``, which is imported
only for them; media inside the records stay encoded until a batch needs them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from mcompose.errors import HubError, RequestError, first_line
from mcompose.recipe import DatasetSpec
from mcompose.refs import ModelRef

__all__ = ["Records", "open_records", "stream_records"]

_SUFFIXES: Final = (".json", ".jsonl", ".parquet")


class Records(Protocol):
    """Protocol of a dataset whose records are read by number."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def read(self, index: int) -> Any:
        """Reads one record.

        Raises:
            RequestError: It is not valid JSON; the message does not name its place.
        """
        ...

    def place(self, index: int) -> str:
        """Returns the location of a record, for messages."""
        ...

    def media_folder(self, index: int) -> Path:
        """Returns the folder where relative paths of a record's media start."""
        ...


def open_records(spec: DatasetSpec, *, folder: Path) -> Records:
    """Opens a dataset for reading by number.

    Args:
        spec: Dataset, as in the recipe.
        folder: Folder of the recipe, where relative paths start.

    Returns:
        Its records.

    Raises:
        RequestError: The dataset does not exist, or its format is not known.
    """
    if spec.path.startswith("hub:"):
        return _Table(_from_hub(spec), place=str(spec.path), folder=folder / (spec.media or "."))
    parts = [_open_file(file, _media_folder(spec, file, folder)) for file in _files(spec, folder)]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def stream_records(spec: DatasetSpec, *, folder: Path) -> Iterator[tuple[int, Any, str, Path]]:
    """Reads a dataset from start to end.

    Args:
        spec: Dataset, as in the recipe.
        folder: Folder of the recipe, where relative paths start.

    Yields:
        Number, record (a RequestError instead if it is not valid JSON), location, and the folder of its media.

    Raises:
        RequestError: The dataset does not exist, or it cannot be streamed.
    """
    if spec.path.startswith("hub:"):
        home = folder / (spec.media or ".")
        for index, record in enumerate(_from_hub(spec)):
            yield index, record, f"{spec.path}[{index}]", home
        return
    index = 0
    for file in _files(spec, folder):
        home = _media_folder(spec, file, folder)
        for record, place in _stream_file(file):
            yield index, record, place, home
            index += 1


def _media_folder(spec: DatasetSpec, file: Path, folder: Path) -> Path:
    return file.parent if spec.media is None else folder / Path(spec.media).expanduser()


def _files(spec: DatasetSpec, folder: Path) -> list[Path]:
    path = folder / Path(spec.path).expanduser()
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise RequestError(f"The dataset {path} must be a {', '.join(_SUFFIXES)} file.")
        return [path]
    if not path.is_dir():
        raise RequestError(
            f"The dataset {path} does not exist.",
            hint="Paths are relative to the recipe; write 'hub:org/name' for the Hub.",
        )
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise RequestError(f"The folder {path} has no dataset.", hint=f"Files must be {', '.join(_SUFFIXES)}.")
    return files


def _open_file(file: Path, media: Path) -> Records:
    if file.suffix == ".parquet":
        return _Table(_from_parquet(file, streaming=False), place=str(file), folder=media)
    if file.suffix == ".jsonl" or not _is_array(file):
        return _Lines(file, media)
    return _Array(file, media)


def _stream_file(file: Path) -> Iterator[tuple[Any, str]]:
    if file.suffix == ".parquet":
        for index, record in enumerate(_from_parquet(file, streaming=True)):
            yield record, f"{file}[{index}]"
        return
    if file.suffix == ".json" and _is_array(file):
        raise RequestError(
            f"{file} is one JSON list, which cannot be streamed.",
            hint="Convert it to one record per line (.jsonl), or remove 'streaming'.",
        )
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _parsed(line), f"{file}:{number}"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # also raised for bytes that are not UTF-8
        return RequestError(f"the line is not valid JSON: {error}.")


def _is_array(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


class _Lines:
    """Records of a JSON lines file."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self._folder = file, folder
        starts, lines, offset = [], [], 0
        with file.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    starts.append((offset, len(line)))
                    lines.append(number)
                offset += len(line)
        self._spans = np.array(starts, dtype=np.int64).reshape(-1, 2)
        self._numbers = np.array(lines, dtype=np.int64)
        self._handle: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def __del__(self) -> None:
        if self.__dict__.get("_handle") is not None:
            os.close(self._handle)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, index: int) -> Any:
        offset, length = map(int, self._spans[index])
        if self._handle is None:
            self._handle = os.open(self.file, os.O_RDONLY)
        # pread, so that threads and forked workers can share the handle.
        record = _parsed(os.pread(self._handle, length, offset))
        if isinstance(record, RequestError):
            raise record
        return record

    def place(self, index: int) -> str:
        return f"{self.file}:{self._numbers[index]}"

    def media_folder(self, index: int) -> Path:
        return self._folder


class _Array:
    """Records of a file that is one JSON list."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self._folder = file, folder
        try:
            self._records = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise RequestError(f"The dataset {file} is not valid JSON: {error}.") from error

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Any:
        return self._records[index]

    def place(self, index: int) -> str:
        return f"{self.file}[{index}]"

    def media_folder(self, index: int) -> Path:
        return self._folder


class _Table:
    """Records of a dataset of the library ``datasets``."""

    def __init__(self, table: Any, *, place: str, folder: Path) -> None:
        self._table, self._place, self._folder = table, place, folder

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Any:
        return self._table[index]

    def place(self, index: int) -> str:
        return f"{self._place}[{index}]"

    def media_folder(self, index: int) -> Path:
        return self._folder


class _Joined:
    """Records of the files of a folder, one file after the other."""

    def __init__(self, parts: list[Records]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Records, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[which], index - (int(self._ends[which - 1]) if which else 0)

    def read(self, index: int) -> Any:
        part, inside = self._find(index)
        return part.read(inside)

    def place(self, index: int) -> str:
        part, inside = self._find(index)
        return part.place(inside)

    def media_folder(self, index: int) -> Path:
        part, inside = self._find(index)
        return part.media_folder(inside)


def _from_parquet(file: Path, *, streaming: bool) -> Any:
    from datasets import load_dataset  # noqa: PLC0415 - a heavy library that JSON does not need

    return _encoded(load_dataset("parquet", data_files=str(file), split="train", streaming=streaming))


def _from_hub(spec: DatasetSpec) -> Any:
    from datasets import load_dataset  # noqa: PLC0415 - see _from_parquet

    ref = ModelRef.parse(spec.path)
    try:
        return _encoded(
            load_dataset(ref.location, spec.subset, revision=ref.revision, split=spec.split, streaming=spec.streaming)
        )
    except (OSError, ValueError) as error:  # base classes of the errors of ``datasets``
        raise HubError(
            f"The dataset '{spec.path}' cannot be loaded: {first_line(error)}.",
            hint="Set 'split' and 'subset' if it has several; log in if it is private.",
        ) from error


def _encoded(table: Any) -> Any:
    """Returns the table with media as bytes and paths, so that mcompose decodes them and reports its own errors."""
    from datasets import Features  # noqa: PLC0415 - see _from_parquet

    if table.features is None:
        return table
    return table.cast(Features({name: _undecoded(feature) for name, feature in table.features.items()}))


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(inner) for inner in feature]
    if hasattr(feature, "feature"):
        return type(feature)(_undecoded(feature.feature))
    if getattr(feature, "decode", None) is True:
        return type(feature)(decode=False)
    return feature
