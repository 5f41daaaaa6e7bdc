"""Records of one dataset, by number or as a stream: JSON, JSON lines, Parquet, folders of these, and the Hub.

JSON lines are indexed by the byte at which each line begins and read one at a time, so that a large file costs eight
bytes a record. Parquet and the Hub go through Hugging Face ``datasets``, which is imported only then; media that stand
inside the records stay encoded until a batch needs them.
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
    """Records by number."""

    def __len__(self) -> int:
        """Returns how many there are."""
        ...

    def read(self, index: int) -> Any:
        """Returns one record as it was written.

        Raises:
            RequestError: It is not JSON; the sentence is without its place.
        """
        ...

    def place(self, index: int) -> str:
        """Returns where a record stands, for messages."""
        ...

    def media_folder(self, index: int) -> Path:
        """Returns where relative paths of a record's media start."""
        ...


def open_records(spec: DatasetSpec, *, folder: Path) -> Records:
    """Opens a dataset for reading by number.

    Args:
        spec: Entry of the recipe.
        folder: The recipe's folder.

    Returns:
        Its records.

    Raises:
        RequestError: There is nothing to read, or not in a format that is known.
    """
    if spec.path.startswith("hub:"):
        return _Table(_from_hub(spec), place=str(spec.path), folder=folder / (spec.media or "."))
    parts = [_open_file(file, _media_folder(spec, file, folder)) for file in _files(spec, folder)]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def stream_records(spec: DatasetSpec, *, folder: Path) -> Iterator[tuple[int, Any, str, Path]]:
    """Reads a dataset from its beginning to its end.

    Args:
        spec: Entry of the recipe.
        folder: The recipe's folder.

    Yields:
        Number, record (an exception in its place when it is not JSON), place, and the folder of its media.

    Raises:
        RequestError: There is nothing to read, or it cannot be streamed.
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
            raise RequestError(f"The dataset {path} is no {', '.join(_SUFFIXES)} file.")
        return [path]
    if not path.is_dir():
        raise RequestError(
            f"There is no dataset at {path}.", hint="Paths are relative to the recipe; the Hub is 'hub:org/name'."
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not found:
        raise RequestError(f"The folder {path} holds no dataset.", hint=f"Known: {', '.join(_SUFFIXES)}.")
    return found


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
            f"{file} is one JSON list, which cannot be streamed.", hint="Write one record a line (.jsonl)."
        )
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                yield _parsed(line), f"{file}:{number}"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # also bytes that are no UTF-8
        return RequestError(f"the line is not JSON: {error}.")


def _is_array(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


class _Lines:
    """A JSON lines file."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self._folder = file, folder
        starts, lines, offset = [], [], 0
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
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
        # At an offset, so that threads and forked workers may share the handle.
        record = _parsed(os.pread(self._handle, length, offset))
        if isinstance(record, RequestError):
            raise record
        return record

    def place(self, index: int) -> str:
        return f"{self.file}:{self._numbers[index]}"

    def media_folder(self, index: int) -> Path:
        return self._folder


class _Array:
    """A file that is one JSON list."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self._folder = file, folder
        try:
            self._records = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise RequestError(f"The dataset {file} is not JSON: {error}.") from error

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Any:
        return self._records[index]

    def place(self, index: int) -> str:
        return f"{self.file}[{index}]"

    def media_folder(self, index: int) -> Path:
        return self._folder


class _Table:
    """A dataset of the library ``datasets``."""

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
    """The files of a folder, one after the other."""

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
    except (OSError, ValueError) as error:  # its own errors descend from these
        raise HubError(
            f"The dataset '{spec.path}' cannot be loaded: {first_line(error)}.",
            hint="Name 'split' and 'subset' when it has several, and log in when it is private.",
        ) from error


def _encoded(table: Any) -> Any:
    """The table with its media columns as bytes and paths: they are decoded by mcompose, with its own errors."""
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
