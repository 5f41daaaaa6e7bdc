"""The journal of a run: one line for each finished tensor, so that a killed run can be resumed.

The first line has the fingerprint of the run and the boot id of the machine; every other line is one finished tensor. A
line is written after the tensor's last byte was passed to the kernel. When only the process is killed, the kernel still
has these bytes, and every line is valid. After a restart of the machine the bytes may be lost: ``same_boot`` is then
False, and the tensors' digests must be checked. So nothing has to be forced to disk during the run, which would take
longer than the run itself.

An incomplete or invalid line ends the journal: it and all later lines are dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mcompose.whole_files import storage_errors

__all__ = ["Journal", "JournalRow"]

FORMAT = 1


@dataclass(frozen=True)
class JournalRow:
    """One finished tensor.

    Args:
        name: Key of the tensor in the output.
        digest: ``xxh3:<hex>`` of its bytes.
        row: Data that the writer gets back when it resumes: the ledger row as plain data.
    """

    name: str
    digest: str
    row: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """An append-only file of finished tensors.

    Args:
        path: Path of the journal.
        descriptor: Descriptor of the file, open for appending.
        rows: Rows that the file already has, by tensor name.
        same_boot: Whether the machine has not been restarted since the journal was begun.
    """

    def __init__(self, path: Path, descriptor: int, *, rows: dict[str, JournalRow], same_boot: bool) -> None:
        self.path = path
        self.rows = rows
        self.same_boot = same_boot
        self._descriptor = descriptor

    @classmethod
    def begin(cls, path: Path, *, fingerprint: str) -> Journal:
        """Starts an empty journal; one that exists is replaced.

        Raises:
            StorageError: The file cannot be written.
        """
        path.unlink(missing_ok=True)
        journal = cls(path, _open(path), rows={}, same_boot=True)
        journal._append({"journal": FORMAT, "fingerprint": fingerprint, "boot": _boot_id()})
        return journal

    @classmethod
    def resume(cls, path: Path, *, fingerprint: str) -> Journal | None:
        """Opens the journal of an earlier run.

        Args:
            path: The file.
            fingerprint: Fingerprint of this run; runs with equal fingerprints write equal bytes.

        Returns:
            The journal up to its first invalid line; None when there is none or its fingerprint differs.
        """
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        lines = raw.split(b"\n")[:-1]  # text after the last line feed is an incomplete line
        head = _parse(lines[0]) if lines else None
        if head is None or head.get("journal") != FORMAT or head.get("fingerprint") != fingerprint:
            return None
        rows: dict[str, JournalRow] = {}
        good = len(lines[0]) + 1
        for line in lines[1:]:
            row = _row(line)
            if row is None:
                break
            rows[row.name] = row
            good += len(line) + 1
        os.truncate(path, good)
        return cls(path, _open(path), rows=rows, same_boot=head.get("boot") == _boot_id() != "")

    def restart(self, *, fingerprint: str, keep: Mapping[str, JournalRow]) -> None:
        """Rewrites the journal with some of its rows and the current boot id.

        Args:
            fingerprint: Fingerprint of this run.
            keep: Rows to keep, by tensor name.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        self.close()
        self._descriptor = _open(fresh)
        self.rows = {}
        self._append({"journal": FORMAT, "fingerprint": fingerprint, "boot": _boot_id()})
        for row in keep.values():
            self.add(row)
        fresh.replace(self.path)
        self.same_boot = True

    def add(self, row: JournalRow) -> None:
        """Appends one finished tensor. Not safe to call from two threads at once.

        Raises:
            StorageError: The disk is full or refused the write.
        """
        self._append({"name": row.name, "digest": row.digest, "row": row.row})
        self.rows[row.name] = row

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, table: Mapping[str, Any]) -> None:
        data = json.dumps(table, ensure_ascii=False).encode("utf-8") + b"\n"
        with storage_errors(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]


def _open(path: Path) -> int:
    with storage_errors(path):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _row(line: bytes) -> JournalRow | None:
    table = _parse(line) or {}
    name, digest, row = (table.get(key) for key in ("name", "digest", "row"))
    if isinstance(name, str) and isinstance(digest, str) and isinstance(row, dict):
        return JournalRow(name, digest, cast("dict[str, Any]", row))
    return None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _boot_id() -> str:
    """Returns an id that changes when the machine restarts; empty (counts as changed) when it is not available."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
