"""A task on disk: one JSON object a line, the first of them the header.

::

    {"task": "common-2", "version": 1, "metric": "letter", "chance": 0.25}
    {"id": "0", "prompt": "<image> <audio> What do all have in common? A. ...", "answer": "B",
     "media": {"image": ["media/image/3.png"], "audio": ["media/audio/7.wav"]}}

Placeholders in the prompt stand for the media of their modality, in order. Paths start from the task's folder. A medium
that is missing is an error that names it, never another item in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcompose.errors import RequestError, nearest_name
from mcompose.evaluate.metrics import METRICS

__all__ = ["PLACEHOLDERS", "Item", "Task", "find_tasks", "read_task"]

PLACEHOLDERS = {"image": "<image>", "audio": "<audio>", "video": "<video>", "points": "<points>"}


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        id: Unique in its task.
        prompt: With one placeholder a medium.
        answer: What the metric compares with.
        media: Modality to files, in the order of their placeholders.
    """

    id: str
    prompt: str
    answer: str
    media: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])


@dataclass(frozen=True)
class Task:
    """Questions with one metric.

    Args:
        name: Of the task; joint tasks carry ``joint`` in their metric's name.
        version: Scores of two versions are not comparable.
        metric: Name of a metric.
        items: The questions, in order.
        chance: Score of guessing, 0 to 1.
        label: Name under which the score is reported; default: the metric's name.
    """

    name: str
    version: int
    metric: str
    items: tuple[Item, ...]
    chance: float = 0.0
    label: str = ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What its items show, in the order of ``PLACEHOLDERS``."""
        return tuple(m for m in PLACEHOLDERS if any(item.media.get(m) for item in self.items))


def find_tasks(names: list[str]) -> list[Path]:
    """The task files that the user named.

    Args:
        names: Files, or folders of ``*.jsonl`` files.

    Raises:
        RequestError: A name is neither, or a folder holds no task.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(path.glob("*.jsonl"))
            if not found:
                raise RequestError(f"'{name}' holds no task (*.jsonl).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            siblings = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
            raise RequestError(f"There is no task '{name}'.", hint=nearest_name(path.name, siblings))
    return paths


def read_task(path: Path) -> Task:
    """Reads and checks a task, media files included.

    Args:
        path: A ``.jsonl`` file.

    Returns:
        The task.

    Raises:
        RequestError: A line is broken, or a medium is missing; the message names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"The task '{path}' cannot be read: {error}.") from error
    header: dict[str, Any] | None = None
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        table = _object(line, place)
        if header is None:
            header = _checked_header(table, place)
        else:
            items.append(_item(table, place, path.parent))
    if header is None or not items:
        raise RequestError(f"The task '{path}' holds no questions.")
    return Task(
        name=str(header["task"]),
        version=int(header.get("version", 1)),
        metric=str(header["metric"]),
        items=tuple(items),
        chance=float(header.get("chance", 0.0)),
        label=str(header.get("label") or header["metric"]),
    )


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        table = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{place}: this is not JSON: {error}.") from error
    if not isinstance(table, dict):
        raise RequestError(f"{place}: every line must be a JSON object.")
    return table


def _checked_header(table: dict[str, Any], place: str) -> dict[str, Any]:
    if "task" not in table or "metric" not in table:
        raise RequestError(f"{place}: the first line must name 'task' and 'metric'.")
    if table["metric"] not in METRICS:
        hint = nearest_name(str(table["metric"]), METRICS)
        raise RequestError(f"{place}: '{table['metric']}' is not a metric.", hint=hint)
    return table


def _item(table: dict[str, Any], place: str, folder: Path) -> Item:
    missing = [key for key in ("prompt", "answer") if not isinstance(table.get(key), str)]
    if missing:
        raise RequestError(f"{place}: '{missing[0]}' is missing.")
    media: dict[str, tuple[Path, ...]] = {}
    for modality, names in (table.get("media") or {}).items():
        if modality not in PLACEHOLDERS:
            hint = nearest_name(modality, PLACEHOLDERS)
            raise RequestError(f"{place}: '{modality}' is not a modality.", hint=hint)
        media[modality] = tuple(folder / name for name in names)
        absent = [file for file in media[modality] if not file.is_file()]
        if absent:
            raise RequestError(f"{place}: the {modality} file '{absent[0]}' is missing.")
        marked = table["prompt"].count(PLACEHOLDERS[modality])
        if marked != len(media[modality]):
            raise RequestError(
                f"{place}: the prompt has {marked} '{PLACEHOLDERS[modality]}' and the item has "
                f"{len(media[modality])} {modality} files."
            )
    return Item(str(table.get("id", place.rpartition(":")[2])), table["prompt"], table["answer"], media)
