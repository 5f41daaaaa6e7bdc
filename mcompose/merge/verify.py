"""Verifies that an output is unchanged: every file against the lock, every tensor against the ledger.

``mcompose/lock.json`` has the size of every file and the SHA-256 of small ones; ``mcompose/ledger.json`` has the digest
of every tensor and of ONNX graphs. Together they cover every byte except the headers, which have their own checks. The
model card is computed from the ledger and may be rewritten, so it is not compared with the lock; neither are hidden
files and files that later steps add under ``mcompose/``.
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
    """One difference from what was written.

    Args:
        where: Path of a file relative to the folder, or key of a tensor.
        sentence: Description of the problem.
    """

    where: str
    sentence: str


@dataclass(frozen=True)
class VerifyReport:
    """Result of a verification.

    Args:
        folder: Folder of the output.
        problems: Problems in the order in which they were found; empty when the output is unchanged.
        files: Number of files that were compared with the lock.
        tensors: Number of tensors whose digest was compared with the ledger.
        nbytes: Size of these tensors, in bytes.
    """

    folder: str
    problems: tuple[Problem, ...]
    files: int
    tensors: int
    nbytes: int

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, for ``--json``."""
        return {"ok": self.ok, **dataclasses.asdict(self), "problems": [vars(problem) for problem in self.problems]}

    def to_text(self) -> str:
        """Formats the report as text."""
        checked = f"{self.files} files and {self.tensors} tensors ({self.nbytes:,} bytes) of '{self.folder}'"
        if self.ok:
            return f"{checked} are unchanged."
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
        progress: Receives the bytes of tensors that were read.

    Returns:
        The report; damage is listed as a problem, never raised as an exception.

    Raises:
        CheckpointError: The folder is not an output of mcompose: it has neither lock nor ledger.
    """
    if not (folder / LOCK).exists() and not (folder / LEDGER).exists():
        hint = "Name a folder that 'mcompose merge' wrote."
        raise CheckpointError(f"'{folder}' does not contain {LEDGER} or {LOCK}.", hint=hint)
    check = _Check(folder, progress or ProgressBar(quiet=True))
    check.files()
    check.tensors()
    return VerifyReport(str(folder), tuple(check.problems), check.file_count, check.tensor_count, check.nbytes)


class _Check:
    """Collects problems and counts."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.file_count = self.tensor_count = self.nbytes = 0
        self._progress = progress
        self._weights: list[str] = []
        self._locked: dict[str, Any] = {}

    def files(self) -> None:
        """Compares the files with the lock."""
        locked = self._locked = self._read_lock()
        for name, expected in locked.items():
            if not _is_inside(name):
                self._say(LOCK, f"names '{name}', which is not a file in this folder")
            elif not isinstance(expected, dict):
                self._say(LOCK, f"does not have the size of '{name}'")
            else:
                self._file(name, cast("dict[str, Any]", expected))
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in locked and not _is_free(name):
                self._say(name, "is not in the lock")
                if name.endswith(".safetensors"):
                    self._weights.append(name)

    def tensors(self) -> None:
        """Compares the tensors with the ledger."""
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
                self._say(name, "is in the ledger, but not in a weight file")
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
            self._say(name, f"has {size} bytes instead of {expected.get('size')}")
        elif "sha256" in expected and self._hash(path) != expected["sha256"]:
            self._say(name, "was changed: its content has another hash")

    def _graph(self, row: FileRow) -> None:
        """Compares a file's hash in the ledger with the lock; the file itself was compared with the lock before."""
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
        """Yields every tensor of every readable weight file."""
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
        """Checks that the index, which readers use, names the right file for every tensor."""
        if not (self.folder / INDEX_FILE).is_file():
            return
        try:
            weight_map = read_json_object(self.folder / INDEX_FILE).get("weight_map")
        except CheckpointError as error:
            self._say(INDEX_FILE, error.message)
            return
        if weight_map != {key: entry.file.name for key, entry in entries.items()}:
            self._say(INDEX_FILE, "does not name the right files of the tensors")

    def _tensor(self, row: TensorRow, entry: TensorEntry) -> None:
        self.tensor_count += 1
        self.nbytes += entry.nbytes
        if entry.dtype != row.dtype or entry.shape != tuple(row.shape):
            actual, expected = f"{entry.dtype} {list(entry.shape)}", f"{row.dtype} {list(row.shape)}"
            self._say(row.name, f"is {actual} in '{entry.file.name}' instead of {expected}")
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
            self._say(LOCK, "does not have a table of files")
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
    """Returns whether a name stays inside the folder; a lock may come from an untrusted source."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name


def _is_free(name: str) -> bool:
    """Returns whether a file may be in an output without being in its lock."""
    parts = name.split("/")
    return name == CARD or parts[0] == FOLDER or any(part.startswith(".") or part == "__pycache__" for part in parts)
