"""An output folder that appears whole or not at all.

Everything is written in ``<dir>.partial`` beside the final folder, the weights under names that no reader
takes for a model. ``finish`` gives the files their names and renames the folder; an output of mcompose that
stood there is replaced in the same moment. A run that dies leaves the partial folder, and the next run with
the same fingerprint goes on from its journal (``journal.py``). A lock keeps two runs out of one folder. A
folder that holds anything else is never touched.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mcompose.checkpoint.digest import digest_file_range
from mcompose.checkpoint.folders import (
    JOURNAL_NAME,
    LOCK_NAME,
    FolderLock,
    check_partial,
    check_replaceable,
    clear_partial,
    discard,
    partial_folder,
    swap_in,
)
from mcompose.checkpoint.journal import Journal, JournalRow
from mcompose.checkpoint.layout import INDEX_FILE, Layout, ShardLayout
from mcompose.checkpoint.sidecar import FileDigest, copy_file, digest_file
from mcompose.errors import StorageError
from mcompose.whole_files import DRAFT_PREFIX, draft_of, storage_errors, write_bytes

__all__ = ["StagedOutput"]


class StagedOutput:
    """An output in the making; use ``open``, as a context manager.

    Args:
        final: The folder that will appear.
        lock: The held lock of the partial folder.
        fingerprint: What the run is made of: equal fingerprints write equal bytes.
        durable: Whether ``finish`` waits until the disk has everything.
    """

    def __init__(self, final: Path, lock: FolderLock, *, fingerprint: str, durable: bool) -> None:
        self.final = final
        self.partial = lock.folder
        self.notice = ""
        self.finished: dict[str, JournalRow] = {}
        self._fingerprint = fingerprint
        self._durable = durable
        self._folder_lock = lock
        self._journal: Journal | None = None
        self._journal_lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    @classmethod
    def open(cls, folder: Path, *, fingerprint: str, resume: bool = True, durable: bool = False) -> StagedOutput:
        """Opens the partial folder of an output.

        Args:
            folder: The final folder; it may not exist, be empty, or hold an earlier output of mcompose.
            fingerprint: What the run is made of: recipe, sources, layout, version. Another fingerprint
                discards what an earlier run has left.
            resume: Whether to go on with what an earlier run has left.
            durable: Whether ``finish`` waits until the disk has everything.

        Returns:
            The output; ``finished`` is filled by ``allocate``, ``notice`` says in a sentence what was
            discarded.

        Raises:
            OutputError: The folder holds something else, cannot be made, or another run is writing it.
        """
        final = check_replaceable(folder)
        lock = FolderLock.take(partial_folder(final))
        staged = cls(final, lock, fingerprint=fingerprint, durable=durable)
        try:
            staged._begin(resume=resume)
        except BaseException:
            lock.release()
            raise
        return staged

    def _begin(self, *, resume: bool) -> None:
        check_partial(self.partial)
        self._journal = Journal.resume(self._path(JOURNAL_NAME), fingerprint=self._fingerprint) if resume else None
        if self._journal is None:
            if clear_partial(self.partial):
                why = "another recipe, other sources or another version" if resume else "as asked"
                self.notice = f"Unfinished work in '{self.partial.name}' was discarded ({why})."
            self._journal = Journal.begin(self._path(JOURNAL_NAME), fingerprint=self._fingerprint)

    def allocate(self, layout: Layout, *, recheck: bool = False) -> dict[str, JournalRow]:
        """Makes the weight files, full size, header first; or finds them as an earlier run has left them.

        Args:
            layout: Where every tensor goes.
            recheck: Whether to hash the tensors of an earlier run before they are believed. After a restart of the
                machine this is always done; a process that was merely killed cannot lose what it wrote.

        Returns:
            The tensors that are finished already, by name; also kept in ``finished``. A second call only repeats them.

        Raises:
            StorageError: The disk has not enough room; nothing is left behind unless there was work to keep.
        """
        journal = self._open_journal()
        if self._descriptors:
            return self.finished
        self._tidy(layout)
        kept = bool(journal.rows) and all(self._is_allocated(shard) for shard in layout.shards)
        finished = self._believable(layout, journal, recheck=recheck) if kept else {}
        if finished != journal.rows:
            journal.restart(fingerprint=self._fingerprint, keep=finished)
        self.finished = dict(finished)
        try:
            with storage_errors(self.final, needed=layout.total_bytes):
                self._make_files(layout)
        except StorageError:
            if not finished:
                self.abandon()
            raise
        if layout.index_json is not None:
            self.write_file(INDEX_FILE, layout.index_json)
        return self.finished

    def pwrite_all(self, shard: str, offset: int, data: memoryview) -> None:
        """Writes bytes to their final place; any thread, any order.

        Args:
            shard: Final name of the file.
            offset: First byte, counted from the start of the file.
            data: The bytes.

        Raises:
            StorageError: The disk is full or refused the write.
            ValueError: The bytes would not lie inside the file.
        """
        view = memoryview(data).cast("B")
        if offset < 0 or offset + len(view) > self._sizes[shard]:
            raise ValueError(f"Bytes {offset} to {offset + len(view)} are not all in '{shard}'.")
        descriptor = self._descriptors[shard]
        done = 0
        with storage_errors(self._weights(shard)):
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], offset + done)

    def record(self, name: str, *, digest: str, row: Mapping[str, Any] | None = None) -> None:
        """Notes in the journal that all bytes of a tensor were written; any thread.

        Args:
            name: The tensor.
            digest: ``xxh3:<hex>`` of its bytes.
            row: A plain table that the next run gets back: the ledger row.

        Raises:
            StorageError: The disk is full or refused the write.
        """
        entry = JournalRow(name, digest, dict(row or {}))
        with self._journal_lock:
            self._open_journal().add(entry)
            self.finished[name] = entry

    def write_file(self, name: str, content: str | bytes) -> Path:
        """Writes a small file whole.

        Args:
            name: Its name in the output; ``/`` separates folders, which are made.
            content: Text (written as UTF-8) or bytes.

        Raises:
            StorageError: The disk is full or refused the write.
        """
        path = self._path(name)
        write_bytes(path, content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def copy_file(self, source: Path, name: str) -> FileDigest:
        """Copies a file into the output by content; returns its size and hash."""
        return copy_file(source, self._path(name))

    def digest(self, shard: str) -> FileDigest:
        """Size and sha256 of a weight file as it stands."""
        return digest_file(self._weights(shard))

    def finish(self) -> Path:
        """Makes the output appear.

        Returns:
            The final folder.

        Raises:
            StorageError: The disk refused; what was written is kept for the next run.
            OutputError: Something else has appeared in the final folder meanwhile.
        """
        check_replaceable(self.final)
        try:
            with storage_errors(self.final):
                self._commit()
        finally:
            self.close()
        return self.final

    def _commit(self) -> None:
        if self._durable:
            self._sync()
        self._close_files()
        for shard in self._sizes:
            self._weights(shard).rename(self._path(shard))
        for torn in self.partial.rglob(DRAFT_PREFIX + "*"):  # a small file that a killed run was writing
            torn.unlink()
        swap_in(self.partial, self.final, durable=self._durable)
        for name in (JOURNAL_NAME, LOCK_NAME):  # last: killed before, nothing that was done is lost
            (self.final / name).unlink()

    def abandon(self) -> None:
        """Deletes everything that was written."""
        self._close_files()
        discard(self.partial)
        self.close()

    def close(self) -> None:
        """Lets go of the folder and keeps what was written, unless no tensor is there; the next run goes on from it."""
        if self._journal is not None and not self._journal.rows and not self._sizes:
            self.abandon()
        self._close_files()
        self._folder_lock.release()

    def _path(self, name: str) -> Path:
        return self.partial / name

    def _weights(self, shard: str) -> Path:
        """Where a weight file lies until the output is finished."""
        return draft_of(self._path(shard))

    def _open_journal(self) -> Journal:
        assert self._journal is not None, "the output is closed"
        return self._journal

    def _tidy(self, layout: Layout) -> None:
        """Gives files back their unfinished names (killed while finishing), and removes those of no shard."""
        names = {self._weights(shard.filename).name for shard in layout.shards}
        for path in sorted(self.partial.glob("*.safetensors")):
            if not path.name.startswith(DRAFT_PREFIX):
                path = path.rename(draft_of(path))
            if path.name not in names:
                path.unlink()

    def _is_allocated(self, shard: ShardLayout) -> bool:
        path = self._weights(shard.filename)
        try:
            with path.open("rb") as handle:
                return path.stat().st_size == shard.size and handle.read(len(shard.header)) == shard.header
        except OSError:
            return False

    def _believable(self, layout: Layout, journal: Journal, *, recheck: bool) -> dict[str, JournalRow]:
        """The journal's tensors that are in the layout; after a restart of the machine, the intact ones."""
        rows = {name: row for name, row in journal.rows.items() if name in layout.places}
        if journal.same_boot and not recheck:
            return rows
        return {name: row for name, row in rows.items() if row.digest == self._digest(layout, name)}

    def _digest(self, layout: Layout, name: str) -> str:
        place = layout.places[name]
        path = self._weights(place.filename)
        return digest_file_range(path, place.offset, place.nbytes)

    def _make_files(self, layout: Layout) -> None:
        paths = {shard.filename: self._weights(shard.filename) for shard in layout.shards}
        there = sum(path.stat().st_blocks * 512 for path in paths.values() if path.exists())
        if layout.total_bytes - there > shutil.disk_usage(self.partial).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for shard in layout.shards:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = self._descriptors[shard.filename] = os.open(paths[shard.filename], flags, 0o644)
            self._sizes[shard.filename] = shard.size
            os.ftruncate(descriptor, shard.size)
            _preallocate(descriptor, shard.size)
            self.pwrite_all(shard.filename, 0, memoryview(shard.header))

    def _sync(self) -> None:
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        for path in sorted(self.partial.rglob("*")):
            if path.is_file() and not path.name.startswith(DRAFT_PREFIX):
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())

    def _close_files(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> StagedOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _preallocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # some file systems cannot; writing will tell
            raise
