"""Which folders mcompose may write, lock and replace."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mcompose.errors import OutputError
from mcompose.on_disk import CARD, LOCK
from mcompose.whole_files import storage_errors

__all__ = [
    "JOURNAL_NAME",
    "LOCK_NAME",
    "FolderLock",
    "check_partial",
    "check_replaceable",
    "clear_partial",
    "discard",
    "is_output",
    "partial_folder",
    "swap_in",
    "whole_folder",
]

LOCK_NAME = ".mcompose-lock"
JOURNAL_NAME = ".mcompose-journal.jsonl"
_DERIVED = {CARD}  # made from the ledger, hence not in the lock

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def is_output(folder: Path) -> bool:
    """Whether a folder is a finished output: its ``mcompose/lock.json`` has a table of files."""
    return _locked_files(folder) is not None


def check_replaceable(folder: Path) -> Path:
    """Checks that an output may be written to a folder.

    Args:
        folder: Where the output should go.

    Returns:
        The folder's absolute path, links followed.

    Raises:
        OutputError: The folder is a file, or holds something that mcompose did not write.
    """
    final = folder.expanduser().resolve()
    if not final.name:
        raise OutputError(f"'{folder}' cannot be an output folder.", hint="Name a folder of its own.")
    if final.exists() and not final.is_dir():
        raise OutputError(f"The output '{folder}' is a file.", hint="Name a folder.")
    if os.path.ismount(final):
        raise OutputError(
            f"The output folder '{folder}' is where a disk is mounted, and cannot be replaced in one step.",
            hint=f"Name a folder in it: '{folder / 'model'}'.",
        )
    if final.is_dir():
        foreign = _foreign(final)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise OutputError(
                f"The output folder '{folder}' already holds something else: '{foreign[0]}'{more}.",
                hint="Name another folder, or move its content away.",
            )
    return final


def partial_folder(final: Path) -> Path:
    """Where an output is made, beside the folder that it becomes."""
    return final.parent / (final.name + ".partial")


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """Makes a folder that appears when the block ends without an error, and not otherwise.

    Args:
        folder: The folder; it does not exist yet, or is empty.

    Yields:
        Where to make it: ``<folder>.partial``, empty. What a killed run has left there is discarded.

    Raises:
        OutputError: The partial folder holds something that is not mcompose's, cannot be made, or another run has it.
        StorageError: The system refused to give the folder its name.
    """
    partial = partial_folder(folder)
    check_partial(partial)
    lock = FolderLock.take(partial)
    try:
        clear_partial(partial)
        with storage_errors(folder):
            (partial / JOURNAL_NAME).touch()  # killed from here on, it is known as mcompose's own
        yield partial
        with storage_errors(folder):
            if folder.is_dir():
                folder.rmdir()
            partial.rename(folder)
            for name in (JOURNAL_NAME, LOCK_NAME):
                (folder / name).unlink()
    except BaseException:
        if partial.is_dir():
            discard(partial)
        raise
    finally:
        lock.release()


def check_partial(folder: Path) -> None:
    """Checks that a partial folder is mcompose's own: a journal or an output is in it, or nothing is.

    Raises:
        OutputError: It holds something else, which must not be deleted.
    """
    names = [path.name for path in folder.iterdir() if path.name != LOCK_NAME] if folder.is_dir() else []
    if names and JOURNAL_NAME not in names and not is_output(folder):
        raise OutputError(
            f"'{folder}' holds something that is not mcompose's, and is needed for the output.", hint="Move it away."
        )


def clear_partial(folder: Path) -> bool:
    """Empties a partial folder but for its lock; returns whether there was anything in it."""
    paths = [path for path in folder.iterdir() if path.name not in {LOCK_NAME, JOURNAL_NAME}]
    journal = folder / JOURNAL_NAME
    anything = bool(paths) or journal.exists()
    if paths:
        journal.touch()  # killed from here on, the rest is still known as mcompose's own
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    journal.unlink(missing_ok=True)
    return anything


def discard(folder: Path) -> None:
    """Deletes a folder of mcompose's own."""
    clear_partial(folder)
    (folder / LOCK_NAME).unlink(missing_ok=True)
    folder.rmdir()


def swap_in(partial: Path, final: Path, *, durable: bool) -> None:
    """Gives a finished folder its final name; what stood there goes.

    The kernel exchanges two folders in one step where it can (Linux). Elsewhere the old one is moved aside
    first, so that there is a moment with no folder of this name, but never one with half a folder.

    Args:
        partial: The finished folder.
        final: Its name from now on.
        durable: Whether the disk has the names, too, when this returns.
    """
    if durable:
        for folder in (partial, *sorted(path for path in partial.rglob("*") if path.is_dir())):
            _sync_names(folder)
    if final.is_dir():
        if not _exchange(partial, final):
            aside = final.with_name(final.name + ".replaced")
            final.rename(aside)
            partial.rename(final)
            partial = aside
        discard(partial)
    else:
        partial.rename(final)
    if durable:
        _sync_names(final.parent)


def _sync_names(folder: Path) -> None:
    """Waits until the disk has the names in a folder; the files behind them are another matter."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """The exclusive hold of one run on one partial folder; the system drops it when the process dies.

    Args:
        folder: The folder.
        descriptor: The lock file in it, open and locked.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> FolderLock:
        """Makes the folder when it is missing, and locks it.

        Raises:
            OutputError: Another run holds it, or it cannot be made.
        """
        try:
            return cls(folder, _lock(folder))
        except BlockingIOError:
            raise OutputError(
                f"Another run is writing '{folder}'.", hint="Wait for it, or name another output folder."
            ) from None
        except OSError as error:
            raise OutputError(f"The output folder '{folder}' cannot be made: {error.strerror}.") from error

    def release(self) -> None:
        """Lets go, and removes the folder when nothing was put in it; may be called twice."""
        if self._descriptor >= 0:
            if self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == [LOCK_NAME]:
                (self.folder / LOCK_NAME).unlink()
                self.folder.rmdir()
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the run that held it has just finished, and took the file with it


def _foreign(folder: Path) -> list[str]:
    """What a folder holds that mcompose did not write, sorted."""
    own = {JOURNAL_NAME, LOCK_NAME}
    paths = [path for path in folder.rglob("*") if not path.is_dir() and path.name not in own]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    locked = _locked_files(folder)
    if locked is None:
        return sorted({name.partition("/")[0] for name in names})
    return [name for name in names if name not in locked and name not in _DERIVED and not name.startswith("mcompose/")]


def _locked_files(folder: Path) -> set[str] | None:
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files = cast("dict[str, Any]", lock).get("files") if isinstance(lock, dict) else None
    return set(cast("dict[str, Any]", files)) if isinstance(files, dict) else None


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result and ctypes.get_errno() not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result == 0
