"""Small files that appear whole or not at all, and what a disk's refusal is called.

A file is written under a draft's name beside its place, and renamed when its last byte is there: a reader, and a run
that goes on after a crash, sees the old file or the new one. Where the disk refuses, the error names the file and says
what is missing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mcompose.errors import StorageError

__all__ = [
    "DRAFT_PREFIX",
    "draft_of",
    "storage_errors",
    "whole_file",
    "write_bytes",
    "write_json",
    "write_text",
]

DRAFT_PREFIX = ".partial-"
"""How the name of a file begins that is still being written: hidden, and of no model's name."""

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",
    errno.EFBIG: "the file would be larger than allowed",
}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def draft_of(path: Path) -> Path:
    """Names the draft of a file: beside it, so that renaming is one step."""
    return path.with_name(DRAFT_PREFIX + path.name)


@contextmanager
def whole_file(path: Path, *, needed: int = 0, mode: int = 0o666, shared: bool = False) -> Generator[BinaryIO]:
    """Opens a file for writing that appears when the block ends without an error, and not otherwise.

    Args:
        path: The file; folders that are missing are made, and a file that is there is replaced.
        needed: Its size in bytes, where that is known; said when the disk is full.
        mode: Who may read and write it, less the process's umask.
        shared: Whether several processes may write the file at once; each then has a draft of its own.

    Raises:
        StorageError: The disk is full, or refused the write; a file that was there before is as it was.
    """
    draft = draft_of(path)
    if shared:
        draft = draft.with_name(f"{draft.name}.{os.getpid()}")
    with storage_errors(path, needed=needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # of a run that was killed; or a link, which must not be written through
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
                yield file
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666, shared: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
        path: The file; folders that are missing are made, and a file that is there is replaced.
        content: What it will hold.
        mode: Who may read and write it, less the process's umask.
        shared: Whether several processes may write the file at once.

    Raises:
        StorageError: As ``whole_file`` says.
    """
    with whole_file(path, needed=len(content), mode=mode, shared=shared) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8, line ends as they are) whole or not at all.

    Raises:
        StorageError: As ``whole_file`` says.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Writes a value as a JSON file whole or not at all.

    Args:
        path: The file; folders that are missing are made.
        value: Plain data.
        indent: Spaces per level.

    Raises:
        StorageError: As ``whole_file`` says.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def storage_errors(path: Path, *, needed: int = 0) -> Generator[None]:
    """Turns a disk's refusals within the block into a sentence about a file.

    Args:
        path: What is being written.
        needed: Its size in bytes, where that is known.

    Raises:
        StorageError: The system refused; the sentence says how much room there is when the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error, needed=needed) from error


def _storage_error(path: Path, error: OSError, *, needed: int) -> StorageError:
    reason = _FULL.get(error.errno or 0)
    if reason is None:
        hint = "Check the permissions of this path, or name another folder." if error.errno in _FORBIDDEN else ""
        return StorageError(f"'{path}' cannot be written: {error.strerror or error}.", hint=hint)
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    figures = f"{needed:,} bytes are needed, {free:,} are free" if needed else f"{free:,} bytes are free"
    return StorageError(f"'{path}' cannot be written: {reason} ({figures}).", hint="Make room, or name another folder.")
