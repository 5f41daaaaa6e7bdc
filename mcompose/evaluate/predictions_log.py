"""Writes the predictions of one task as they are made, resumes from them, and puts them in order at the end.

The first line is a header that names the run: the checkpoint (its files' names, sizes and times) and the settings that
decide what is asked. Answers of another run are moved aside, never mixed in. Within a run, an answer belongs to its
question's own words and media, so that a corrected question is asked again and the others are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcompose.evaluate.jsonl import append_lines, json_lines, whole_lines
from mcompose.evaluate.task import Item
from mcompose.whole_files import write_bytes

__all__ = ["PredictionsLog", "fingerprint"]

_NO_PART_OF_THE_MODEL: Final = frozenset({"README.md", ".gitattributes"})


def fingerprint(checkpoint: Path, settings: Mapping[str, Any]) -> str:
    """Returns a digest that identifies a run.

    Args:
        checkpoint: Folder of the checkpoint.
        settings: Settings that change what is asked.

    Returns:
        16 hexadecimal digits; others when a file of the checkpoint was written again, or a setting changed.
    """
    files = sorted(p for p in checkpoint.iterdir() if p.is_file()) if checkpoint.is_dir() else []
    state = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.name not in _NO_PART_OF_THE_MODEL]
    text = json.dumps([state, dict(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def item_key(item: Item, prompt: str) -> str:
    """Returns a digest that identifies a question by its words and media."""
    media = []
    for entry in item.inputs:
        if entry.path is not None and entry.path.is_file():
            stat = entry.path.stat()
            media.append([entry.modality, str(entry.path), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps([item.id, prompt, media]).encode()).hexdigest()[:16]


class PredictionsLog:
    """The predictions file of one task.

    Args:
        path: The JSON-lines file; None keeps nothing.
        header: First line of the file; its ``run`` identifies the run.
        resume: Whether answers of the same run are used again.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], *, resume: bool = True) -> None:
        self._path, self._header = path, dict(header)
        self.found: dict[str, dict[str, Any]] = {}
        self.moved: Path | None = None
        head, *rows = (whole_lines(path) if path is not None else []) or [{}]
        if resume and head == self._header:
            self.found = {str(row.get("key")): row for row in rows if "output" in row and not row.get("skipped")}
        elif path is not None and path.exists():
            self.moved = path.with_suffix(".previous.jsonl")
            path.replace(self.moved)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends answers."""
        if self._path is None:
            return
        append_lines(self._path, rows if self._path.exists() else [self._header, *rows])

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the file anew, in the task's order: whole or not at all.

        Answers that this run did not need, because it had a limit, stay at the end for one that has none.
        """
        if self._path is None:
            return
        used = {row["key"] for row in rows}
        rows = [*rows, *(row for key, row in self.found.items() if key not in used)]
        write_bytes(self._path, json_lines([self._header, *rows]))
