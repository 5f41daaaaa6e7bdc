"""JSON-lines files that grow while a run goes on, and stay readable when it is killed at any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mcompose.whole_files import storage_errors

__all__ = ["append_lines", "json_lines", "whole_lines"]


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Writes objects as lines of JSON."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends objects; a line that an earlier end cut short is closed first.

    Args:
        path: The file; made with its folder when it is not there.
        rows: The objects.

    Raises:
        StorageError: The disk is full or refused the write.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json_lines(rows))


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects whose lines are complete.

    Args:
        path: The file; may be missing.

    Returns:
        One object per complete line; none when the file is missing.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
