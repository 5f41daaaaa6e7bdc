"""Output folders: checks whether mcompose may write or replace them, locks them, and swaps them in."""

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

from mcompose.card_mark import is_edited_card
from mcompose.errors import OutputError
from mcompose.on_disk import CARD, LEDGER, LOCK, RECIPE, RESOLVED
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
_RECORDS = (CARD, LEDGER, LOCK, RECIPE, RESOLVED)  # of which the lock file has only some

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def is_output(folder: Path) -> bool:
    """Returns whether a folder is a finished output: its ``mcompose/lock.json`` has a table of files."""
    return _locked_files(folder) is not None


def check_replaceable(folder: Path) -> Path:
    """Checks that an output may be written to a folder.

    Args:
        folder: Output folder.

    Returns:
        Absolute path of the folder, with links resolved.

    Raises:
        OutputError: The path is a file, or the folder contains something that mcompose did not write.
    """
    final = folder.expanduser().resolve()
    if not final.name:
        raise OutputError(f"'{folder}' cannot be an output folder.", hint="Name a folder for this output only.")
    if final.exists() and not final.is_dir():
        raise OutputError(f"The output '{folder}' is a file.", hint="Name a folder.")
    if os.path.ismount(final):
        raise OutputError(
            f"The output folder '{folder}' is a mount point, which cannot be replaced in one step.",
            hint=f"Name a folder in it: '{folder / 'model'}'.",
        )
    if final.is_dir():
        foreign = _foreign(final)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            what = f"files that mcompose did not write: '{foreign[0]}'"
            what = "a README.md that a person has edited" if foreign[0] == CARD else what
            raise OutputError(
                f"The output folder '{folder}' contains {what}{more}.",
                hint="Name another folder, or move them away: the new output takes the place of the whole folder.",
            )
    return final


def partial_folder(final: Path) -> Path:
    """Returns the folder in which an output is written before it is renamed to its final name."""
    return final.parent / (final.name + ".partial")


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """Creates a folder that appears when the block ends without an error, and not otherwise.

    Args:
        folder: The folder; it does not exist yet, or is empty.

    Yields:
        The empty folder ``<folder>.partial`` to write into. Files of a killed run are deleted first.

    Raises:
        OutputError: The partial folder contains something else, cannot be created, or is used by another run.
        StorageError: The system refused to rename the folder.
    """
    partial = partial_folder(folder)
    check_partial(partial)
    lock = FolderLock.take(partial)
    try:
        clear_partial(partial)
        with storage_errors(folder):
            (partial / JOURNAL_NAME).touch()  # marks the folder as mcompose's in case the run is killed
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
    """Checks that a partial folder was written by mcompose: it has a journal, is an output, or is empty.

    Raises:
        OutputError: The folder contains something else, which must not be deleted.
    """
    names = [path.name for path in folder.iterdir() if path.name != LOCK_NAME] if folder.is_dir() else []
    if names and JOURNAL_NAME not in names and not is_output(folder):
        message = f"'{folder}' is needed for the output, but contains files that mcompose did not write."
        raise OutputError(message, hint="Move them away.")


def clear_partial(folder: Path) -> bool:
    """Empties a partial folder except for its lock; returns whether there was anything in it."""
    paths = [path for path in folder.iterdir() if path.name not in {LOCK_NAME, JOURNAL_NAME}]
    journal = folder / JOURNAL_NAME
    had_content = bool(paths) or journal.exists()
    if paths:
        journal.touch()  # marks the rest as mcompose's in case the run is killed
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    journal.unlink(missing_ok=True)
    return had_content


def discard(folder: Path) -> None:
    """Deletes a folder that mcompose wrote."""
    clear_partial(folder)
    (folder / LOCK_NAME).unlink(missing_ok=True)
    folder.rmdir()


def swap_in(partial: Path, final: Path, *, durable: bool) -> None:
    """Renames a finished folder to its final name and deletes the folder that it replaces.

    Linux exchanges the two folders in one step. Elsewhere the old folder is renamed first, so for a moment there is no
    folder of this name, but never an incomplete one.

    Args:
        partial: The finished folder.
        final: Its final name.
        durable: Whether to wait until the names are on disk.
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
    """Waits until the names in a folder are on disk; the content of the files is synchronised elsewhere."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Exclusive lock of one run on a partial folder; the system releases it when the process ends.

    Args:
        folder: The partial folder.
        descriptor: Descriptor of the locked file in it.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> FolderLock:
        """Creates the folder when it is missing, and locks it.

        Raises:
            OutputError: Another run has locked it, or it cannot be created.
        """
        try:
            return cls(folder, _lock(folder))
        except BlockingIOError:
            raise OutputError(
                f"Another run is writing '{folder}'.", hint="Wait for it, or name another output folder."
            ) from None
        except OSError as error:
            raise OutputError(f"The output folder '{folder}' cannot be created: {error.strerror}.") from error

    def release(self) -> None:
        """Releases the lock, and deletes the folder when it is empty; may be called twice."""
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
        os.close(descriptor)  # the other run has just finished and deleted the lock file: try again


def _foreign(folder: Path) -> list[str]:
    """Returns the names in a folder that mcompose did not write, sorted."""
    own_names = {JOURNAL_NAME, LOCK_NAME}
    paths = [path for path in folder.rglob("*") if not path.is_dir() and path.name not in own_names]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    locked = _locked_files(folder)
    if locked is None:
        return sorted({name.partition("/")[0] for name in names})
    own = {*locked, *_RECORDS} - ({CARD} if is_edited_card(folder / CARD) else set())
    return [name for name in names if name not in own]


def _locked_files(folder: Path) -> set[str] | None:
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files = cast("dict[str, Any]", lock).get("files") if isinstance(lock, dict) else None
    return set(cast("dict[str, Any]", files)) if isinstance(files, dict) else None


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; returns False where the system cannot do it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result and ctypes.get_errno() not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result == 0
