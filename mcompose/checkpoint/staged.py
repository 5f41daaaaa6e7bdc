"""An output folder that appears only when it is complete.

Everything is written to ``<dir>.partial`` beside the final folder, the weights under names that readers do not take for
a model. ``finish`` renames the files and the folder; an earlier output of mcompose is replaced at the same moment. A
killed run leaves the partial folder, and the next run with the same fingerprint is resumed from its journal
(``journal.py``). A lock keeps two runs out of the same folder. A folder with other content is never touched.
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
    """An output that is being written; create it with ``open``, as a context manager.

    Args:
        final: Final folder of the output.
        lock: Lock of the partial folder.
        fingerprint: Fingerprint of the run; runs with equal fingerprints write equal bytes.
        durable: Whether ``finish`` waits until everything is on disk.
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
            folder: Final folder: missing, empty, or with an earlier output of mcompose.
            fingerprint: Fingerprint of recipe, sources, layout and version. Unfinished work with another fingerprint is
                discarded.
            resume: Whether to resume an unfinished run.
            durable: Whether ``finish`` waits until everything is on disk.

        Returns:
            The output. ``allocate`` fills ``finished``; ``notice`` is a sentence about discarded work.

        Raises:
            OutputError: The folder contains something else, cannot be created, or another run is writing it.
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
                why = "another recipe, other sources or another version" if resume else "as requested"
                self.notice = f"Unfinished work in '{self.partial.name}' was discarded ({why})."
            self._journal = Journal.begin(self._path(JOURNAL_NAME), fingerprint=self._fingerprint)

    def adopt(self, rows: Mapping[str, JournalRow]) -> None:
        """Takes over tensors that other runs wrote into this folder's weight files; call it before ``allocate``.

        Args:
            rows: Name of the tensor to its row in the journal of its run.
        """
        journal = self._open_journal()
        for name, row in rows.items():
            if name not in journal.rows:
                journal.add(row)

    def allocate(self, layout: Layout, *, recheck: bool = False) -> dict[str, JournalRow]:
        """Creates the weight files in full size with their headers, or opens those of an earlier run.

        Args:
            layout: Files and offsets of all tensors.
            recheck: Whether to check the digests of an earlier run's tensors. After a restart of the machine this is
                always done; a killed process alone cannot lose written data.

        Returns:
            The tensors that are finished already, by name; also in ``finished``. A second call returns the same.

        Raises:
            StorageError: The disk does not have enough space; everything is deleted unless some tensors were finished.
        """
        journal = self._open_journal()
        if self._descriptors:
            return self.finished
        self._restore_draft_names(layout)
        can_resume = bool(journal.rows) and all(self._is_allocated(shard) for shard in layout.shards)
        finished = self._intact_rows(layout, journal, recheck=recheck) if can_resume else {}
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
        """Writes bytes to their final place; may be called from any thread, in any order.

        Args:
            shard: Final name of the file.
            offset: First byte, from the start of the file.
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
        """Records in the journal that all bytes of a tensor were written; may be called from any thread.

        Args:
            name: Name of the tensor.
            digest: ``xxh3:<hex>`` of its bytes.
            row: Plain data that a resumed run gets back: the ledger row.

        Raises:
            StorageError: The disk is full or refused the write.
        """
        entry = JournalRow(name, digest, dict(row or {}))
        with self._journal_lock:
            self._open_journal().add(entry)
            self.finished[name] = entry

    def write_file(self, name: str, content: str | bytes) -> Path:
        """Writes a small file atomically.

        Args:
            name: Path in the output, with ``/``; missing folders are created.
            content: Text (written as UTF-8) or bytes.

        Raises:
            StorageError: The disk is full or refused the write.
        """
        path = self._path(name)
        write_bytes(path, content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def copy_file(self, source: Path, name: str) -> FileDigest:
        """Copies a file's content into the output; returns its size and hash."""
        return copy_file(source, self._path(name))

    def digest(self, shard: str) -> FileDigest:
        """Computes size and SHA-256 of a weight file in its current state."""
        return digest_file(self._weights(shard))

    def finish(self) -> Path:
        """Renames the partial folder to its final name.

        Returns:
            The final folder.

        Raises:
            StorageError: The disk refused; written data is kept for the next run.
            OutputError: Other files have appeared in the final folder in the meantime.
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
        for draft in self.partial.rglob(DRAFT_PREFIX + "*"):  # small files that a killed run was writing
            draft.unlink()
        swap_in(self.partial, self.final, durable=self._durable)
        for name in (JOURNAL_NAME, LOCK_NAME):  # last, so that a run killed before this loses nothing
            (self.final / name).unlink()

    def abandon(self) -> None:
        """Deletes everything that was written."""
        self._close_files()
        discard(self.partial)
        self.close()

    def close(self) -> None:
        """Releases the folder; written tensors are kept for the next run, a folder without tensors is deleted."""
        if self._journal is not None and not self._journal.rows and not self._sizes:
            self.abandon()
        self._close_files()
        self._folder_lock.release()

    def _path(self, name: str) -> Path:
        return self.partial / name

    def _weights(self, shard: str) -> Path:
        """Returns the path of a weight file until the output is finished."""
        return draft_of(self._path(shard))

    def _open_journal(self) -> Journal:
        assert self._journal is not None, "the output is closed"
        return self._journal

    def _restore_draft_names(self, layout: Layout) -> None:
        """Gives files of a run killed in ``finish`` their draft names again, and deletes files of other layouts."""
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

    def _intact_rows(self, layout: Layout, journal: Journal, *, recheck: bool) -> dict[str, JournalRow]:
        """Returns the journal's tensors that are in the layout; after a restart, only those with the right digest."""
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
        allocated = sum(path.stat().st_blocks * 512 for path in paths.values() if path.exists())
        if layout.total_bytes - allocated > shutil.disk_usage(self.partial).free:
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
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # not supported by some file systems
            raise
