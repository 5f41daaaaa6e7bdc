"""Finds and reads task files: one file, or all in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mcompose.errors import RequestError
from mcompose.evaluate.jsonl_tasks import load_lines
from mcompose.evaluate.released import load_card, load_questions
from mcompose.evaluate.task import Task

__all__ = ["find_tasks", "load_task"]

_READERS = {".jsonl": load_lines, ".yaml": load_card, ".yml": load_card, ".json": load_questions}


def find_tasks(wanted: Iterable[str | Path]) -> list[Path]:
    """Lists the task files that a user named.

    Args:
        wanted: Files, or folders whose ``*.jsonl`` and task cards (``*.yaml``) are all meant.

    Returns:
        Files, in the order of the request; a folder's are sorted.

    Raises:
        RequestError: A path does not exist, or a folder holds no task.
    """
    files: list[Path] = []
    for one in map(Path, wanted):
        if one.is_dir():
            found = sorted(p for p in one.iterdir() if p.suffix in {".jsonl", ".yaml", ".yml"})
            if not found:
                raise RequestError(
                    f"{one} holds no task file.", hint="A task is a file that ends in .jsonl, or a task card in YAML."
                )
            files += found
        elif one.is_file():
            files.append(one)
        else:
            raise RequestError(
                f"There is no task at {one}.", hint="Name a task file (.jsonl) or a folder of them, such as lab/data."
            )
    return files


def load_task(file: Path, *, limit: int | None = None, check_media: bool = True) -> Task:
    """Reads a task and checks that its media are there.

    Args:
        file: JSON lines, a task card (YAML), or a released question file (JSON) whose answers lie beside it.
        limit: Only the first so many questions.
        check_media: Refuse a file that is not there.

    Returns:
        The task.

    Raises:
        RequestError: The file asks nothing that can be asked, or a medium is missing; the message has the place.
    """
    if file.suffix not in _READERS:
        raise RequestError(f"{file} is not a task file.", hint="Task files end in .jsonl, .yaml, .yml or .json.")
    return _READERS[file.suffix](file, limit=limit, check_media=check_media)
