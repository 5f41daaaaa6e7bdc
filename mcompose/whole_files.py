"""Writes small files atomically, and turns errors of the disk into sentences.

A file is written under a draft name in the same folder, and renamed after its last byte: a reader, or a run that is
resumed after a crash, sees either the old file or the new one. When the disk refuses the write, the error names the
file and the free space.
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
"""Prefix of a file that is still being written: hidden, and never part of a model's name."""

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",
    errno.EFBIG: "the file would be larger than allowed",
}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def draft_of(path: Path) -> Path:
    """Returns the draft name of a file, in the same folder so that renaming is atomic."""
    return path.with_name(DRAFT_PREFIX + path.name)


@contextmanager
def whole_file(path: Path, *, needed: int = 0, mode: int = 0o666, shared: bool = False) -> Generator[BinaryIO]:
    """Opens a file for writing; it appears when the block ends without an error, and not otherwise.

    Args:
        path: The file. Missing folders are created, and an existing file is replaced.
        needed: Expected size in bytes, for the message when the disk is full; 0 when unknown.
        mode: Permission bits of the file, before the process's umask.
        shared: Whether several processes may write the file at once; each then has its own draft.

    Raises:
        StorageError: The disk is full, or refused the write; an existing file is unchanged.
    """
    draft = draft_of(path)
    if shared:
        draft = draft.with_name(f"{draft.name}.{os.getpid()}")
    with storage_errors(path, needed=needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # left by a killed run; or a link, which must not be written through
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
                yield file
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666, shared: bool = False) -> None:
    """Writes a file atomically.

    Args:
        path: The file. Missing folders are created, and an existing file is replaced.
        content: Content of the file.
        mode: Permission bits of the file, before the process's umask.
        shared: Whether several processes may write the file at once.

    Raises:
        StorageError: The disk is full, or refused the write.
    """
    with whole_file(path, needed=len(content), mode=mode, shared=shared) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8, line ends unchanged) atomically.

    Raises:
        StorageError: The disk is full, or refused the write.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Writes a value as a JSON file atomically.

    Args:
        path: The file. Missing folders are created.
        value: Value of dicts, lists, strings, numbers, booleans and None.
        indent: Spaces per level.

    Raises:
        StorageError: The disk is full, or refused the write.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def storage_errors(path: Path, *, needed: int = 0) -> Generator[None]:
    """Turns errors of the operating system within the block into a sentence about a file.

    Args:
        path: File that is being written.
        needed: Expected size in bytes; 0 when unknown.

    Raises:
        StorageError: The system refused the write; when the disk is full, the message says how much space is free.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error, needed=needed) from error


def _storage_error(path: Path, error: OSError, *, needed: int) -> StorageError:
    reason = _FULL.get(error.errno or 0)
    if reason is None:
        hint = "Check the permissions of this path, or choose another folder." if error.errno in _FORBIDDEN else ""
        return StorageError(f"'{path}' cannot be written: {error.strerror or error}.", hint=hint)
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    figures = f"{needed:,} bytes are needed, {free:,} are free" if needed else f"{free:,} bytes are free"
    hint = "Free some space, or choose another folder."
    return StorageError(f"'{path}' cannot be written: {reason} ({figures}).", hint=hint)
