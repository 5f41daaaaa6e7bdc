"""Whether an output is still what was written: every file against the lock, every tensor against the ledger.

``mcompose/lock.json`` holds the size of every file and the sha256 of the small ones; ``mcompose/ledger.json`` holds the
digest of every tensor, and of files that compute without being tensors (ONNX graphs). Together they cover every byte
but the headers, which are checked by their own rules. The model card is made from the ledger and may be made anew, so
it is not held to the lock; neither are hidden files, nor what later steps add under ``mcompose/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from mcompose.checkpoint import INDEX_FILE, TensorEntry, digest_file, digest_tensor, read_header, read_json_object
from mcompose.errors import CheckpointError
from mcompose.ledger import FileRow, Ledger, TensorRow
from mcompose.on_disk import CARD, FOLDER, LEDGER, LOCK
from mcompose.progress import Progress, ProgressBar

__all__ = ["Problem", "VerifyReport", "verify"]

SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written.

    Args:
        where: File relative to the folder, or key of a tensor.
        sentence: What is wrong with it.
    """

    where: str
    sentence: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and found.

    Args:
        folder: The output.
        problems: In the order in which they were found; empty when all is well.
        files: Files that were compared with the lock.
        tensors: Tensors whose digest was compared with the ledger.
        nbytes: Their bytes.
    """

    folder: str
    problems: tuple[Problem, ...]
    files: int
    tensors: int
    nbytes: int

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for ``--json``."""
        return {"ok": self.ok, **dataclasses.asdict(self), "problems": [vars(problem) for problem in self.problems]}

    def to_text(self) -> str:
        """The report for people."""
        checked = f"{self.files} files and {self.tensors} tensors ({self.nbytes:,} bytes) of '{self.folder}'"
        if self.ok:
            return f"{checked} are as they were written."
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{count} in {checked}:"]
        lines += [f"  {problem.where}: {problem.sentence}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)


def verify(folder: Path, *, progress: Progress | None = None) -> VerifyReport:
    """Checks every file and every tensor of an output.

    Args:
        folder: An output of ``mcompose merge``.
        progress: Told the bytes of tensors that were read.

    Returns:
        The report; damage is a problem in it, never an exception.

    Raises:
        CheckpointError: The folder is not an output of mcompose: it has neither lock nor ledger.
    """
    if not (folder / LOCK).exists() and not (folder / LEDGER).exists():
        raise CheckpointError(
            f"'{folder}' holds no {LEDGER} and no {LOCK}.", hint="Was it written by 'mcompose merge'?"
        )
    check = _Check(folder, progress or ProgressBar(quiet=True))
    check.files()
    check.tensors()
    return VerifyReport(str(folder), tuple(check.problems), check.file_count, check.tensor_count, check.nbytes)


class _Check:
    """Problems and counts while they are collected."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.file_count = self.tensor_count = self.nbytes = 0
        self._progress = progress
        self._weights: list[str] = []
        self._locked: dict[str, Any] = {}

    def files(self) -> None:
        """The files against the lock."""
        locked = self._locked = self._read_lock()
        for name, expected in locked.items():
            if not _is_inside(name):
                self._say(LOCK, f"names '{name}', which is not a file of this folder")
            elif not isinstance(expected, dict):
                self._say(LOCK, f"says nothing of '{name}'")
            else:
                self._file(name, cast("dict[str, Any]", expected))
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in locked and not _is_free(name):
                self._say(name, "is not in the lock")
                if name.endswith(".safetensors"):
                    self._weights.append(name)

    def tensors(self) -> None:
        """The tensors against the ledger."""
        ledger = self._read_ledger()
        rows = {row.name: row for row in ledger.tensors if row.action != "dropped"} if ledger else {}
        for row in ledger.files if ledger else ():
            if row.action != "dropped":
                self._graph(row)
        entries = dict(self._entries())
        self._index(entries)
        self._progress.start(sum(entry.nbytes for entry in entries.values()), 0)
        for name, row in rows.items():
            if name not in entries:
                self._say(name, "is in the ledger, but in no weight file")
            else:
                self._tensor(row, entries[name])
        for name, entry in entries.items():
            if name not in rows:
                self._say(name, f"is in '{entry.file.name}', but not in the ledger")
        self._progress.finish()

    def _file(self, name: str, expected: Mapping[str, Any]) -> None:
        path = self.folder / name
        if not path.is_file():
            self._say(name, "is missing")
            return
        self.file_count += 1
        if name.endswith(".safetensors"):
            self._weights.append(name)
        size = path.stat().st_size
        if size != expected.get("size"):
            self._say(name, f"has {size} bytes, was written with {expected.get('size')}")
        elif "sha256" in expected and self._hash(path) != expected["sha256"]:
            self._say(name, "was changed: its content has another hash")

    def _graph(self, row: FileRow) -> None:
        """A file of the ledger; that it is what the lock says was seen before."""
        locked = self._locked.get(row.name)
        if not isinstance(locked, dict):
            self._say(row.name, "is in the ledger, but not in the lock")
        elif cast("dict[str, Any]", locked).get("sha256") != row.sha256:
            self._say(row.name, "has another hash in the ledger than in the lock")

    def _hash(self, path: Path) -> str:
        try:
            return digest_file(path).sha256
        except CheckpointError as error:
            return error.message

    def _entries(self) -> Iterator[tuple[str, TensorEntry]]:
        """Every tensor of every weight file that can be read."""
        seen: dict[str, str] = {}
        for name in self._weights:
            try:
                header = read_header(self.folder / name)
            except CheckpointError as error:
                self._say(name, error.message)
                continue
            for entry in header.entries:
                if entry.key in seen:
                    self._say(entry.key, f"is in two files: '{seen[entry.key]}' and '{name}'")
                    continue
                seen[entry.key] = name
                yield entry.key, entry

    def _index(self, entries: Mapping[str, TensorEntry]) -> None:
        """Readers go by the index, so it must place every tensor where it is."""
        if not (self.folder / INDEX_FILE).is_file():
            return
        try:
            weight_map = read_json_object(self.folder / INDEX_FILE).get("weight_map")
        except CheckpointError as error:
            self._say(INDEX_FILE, error.message)
            return
        if weight_map != {key: entry.file.name for key, entry in entries.items()}:
            self._say(INDEX_FILE, "does not place the tensors where they are")

    def _tensor(self, row: TensorRow, entry: TensorEntry) -> None:
        self.tensor_count += 1
        self.nbytes += entry.nbytes
        if entry.dtype != row.dtype or entry.shape != tuple(row.shape):
            found, written = f"{entry.dtype} {list(entry.shape)}", f"{row.dtype} {list(row.shape)}"
            self._say(row.name, f"is {found} in '{entry.file.name}', was written as {written}")
            return
        try:
            digest = digest_tensor(entry)
        except CheckpointError as error:
            self._say(row.name, error.message)
            return
        self._progress.advance(entry.nbytes)
        if digest != row.digest:
            self._say(row.name, f"was changed: its bytes in '{entry.file.name}' have another digest")

    def _read_lock(self) -> dict[str, Any]:
        try:
            files = read_json_object(self.folder / LOCK).get("files")
        except CheckpointError as error:
            self._say(LOCK, error.message)
            return {}
        if not isinstance(files, dict):
            self._say(LOCK, "has no table of files")
            return {}
        return cast("dict[str, Any]", files)

    def _read_ledger(self) -> Ledger | None:
        try:
            return Ledger.read(self.folder)
        except (CheckpointError, UnicodeDecodeError) as error:
            self._say(LEDGER, getattr(error, "message", "") or "is not text")
            return None

    def _say(self, where: str, sentence: str) -> None:
        self.problems.append(Problem(where, sentence))


def _is_inside(name: str) -> bool:
    """Whether a name of the lock stays in the folder: a lock may come from a stranger."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name


def _is_free(name: str) -> bool:
    """Whether a file may stand in an output without being in its lock."""
    parts = name.split("/")
    return name == CARD or parts[0] == FOLDER or any(part.startswith(".") or part == "__pycache__" for part in parts)
