"""Tasks: questions with media, read from JSON lines.

The first line is the header, every other line a question::

    {"task": "joint-common-3", "version": 1, "metric": "joint_letter", "modalities": ["image", ...], "chance": 0.25}
    {"id": "0", "inputs": [{"modality": "image", "path": "media/7.png", "text": "image <image>"}],
     "question": "what do all have in common ? ...", "answer": "C"}

``path`` is relative to the task file; an input of modality ``text`` has none. The prompt is the inputs' texts and the
question, joined by spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcompose.errors import RequestError
from mcompose.evaluate.metrics import rule_for

__all__ = ["Item", "MediaInput", "Task", "find_tasks", "load_task"]

_KNOWN: Final = frozenset({"image", "audio", "video", "points", "text"})


@dataclass(frozen=True)
class MediaInput:
    """One input of a question.

    Args:
        modality: "image", "audio", "video", "points" or "text".
        text: What stands for it in the prompt; holds the placeholder ``<modality>`` unless it is text.
        path: Its file; None for text.
    """

    modality: str
    text: str
    path: Path | None


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        id: Its name within the task.
        inputs: What it is about, in order.
        question: The words after the inputs.
        answer: What the output should be.
    """

    id: str
    inputs: tuple[MediaInput, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: Its name in reports.
        version: Raised when the same name asks something else.
        metric: Name of the scoring rule; ``joint_`` in front for questions over several inputs.
        modalities: What its inputs are.
        chance: Accuracy of guessing.
        items: The questions.
        max_new_tokens: Longest answer.
        file: Where it was read from.
    """

    name: str
    version: int
    metric: str
    modalities: tuple[str, ...]
    chance: float
    items: tuple[Item, ...]
    max_new_tokens: int
    file: Path


def find_tasks(wanted: Iterable[str | Path]) -> list[Path]:
    """Task files behind what the user named.

    Args:
        wanted: Files, or folders whose ``*.jsonl`` are all meant.

    Returns:
        Files, in the order of the request; a folder's are sorted.

    Raises:
        RequestError: A path does not exist, or a folder holds no task.
    """
    files: list[Path] = []
    for one in map(Path, wanted):
        if one.is_dir():
            found = sorted(one.glob("*.jsonl"))
            if not found:
                raise RequestError(f"{one} holds no task file.", hint="A task is a file that ends in .jsonl.")
            files += found
        elif one.is_file():
            files.append(one)
        else:
            raise RequestError(
                f"There is no task at {one}.", hint="Name a task file (.jsonl) or a folder of them, such as lab/data."
            )
    return files


def load_task(file: Path, *, limit: int | None = None) -> Task:
    """Reads a task and checks that its media are there.

    Args:
        file: The task file.
        limit: Only the first so many questions.

    Returns:
        The task.

    Raises:
        RequestError: A line is no question, the metric is unknown, or a medium is missing; the message has the place.
    """
    lines = _lines(file)
    header, *rows = lines
    place = f"{file}:1"
    metric = _field(header, "metric", str, place=place)
    rule_for(metric)
    items = tuple(_item(row, file=file, line=i + 2) for i, row in enumerate(rows[:limit]))
    if not items:
        raise RequestError(f"{file} asks nothing: it has no line after its header.")
    return Task(
        name=_field(header, "task", str, place=place),
        version=_field(header, "version", int, place=place),
        metric=metric,
        modalities=tuple(_field(header, "modalities", list, place=place)),
        chance=float(header.get("chance", 0.0)),
        items=items,
        max_new_tokens=int(header.get("max_new_tokens", 16)),
        file=file,
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{file}:{number}: this line is no JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise RequestError(f"{file}:{number}: this line is no JSON object.")
        rows.append(row)
    if not rows:
        raise RequestError(
            f"{file} is empty.", hint="Its first line is a header with task, version, metric, modalities."
        )
    return rows


def _item(row: dict[str, Any], *, file: Path, line: int) -> Item:
    place = f"{file}:{line}"
    inputs = tuple(_input(entry, file=file, place=place) for entry in _field(row, "inputs", list, place=place))
    return Item(
        id=str(row.get("id", line - 2)),
        inputs=inputs,
        question=_field(row, "question", str, place=place),
        answer=_field(row, "answer", str, place=place),
    )


def _input(entry: Any, *, file: Path, place: str) -> MediaInput:
    if not isinstance(entry, dict):
        raise RequestError(f"{place}: an input is an object with modality, text and path.")
    modality = _field(entry, "modality", str, place=place)
    text = _field(entry, "text", str, place=place)
    if modality not in _KNOWN:
        raise RequestError(f"{place}: '{modality}' is no modality.", hint=f"Known: {', '.join(sorted(_KNOWN))}.")
    if modality == "text":
        return MediaInput(modality, text, None)
    path = file.parent / _field(entry, "path", str, place=place)
    if not path.is_file():
        raise RequestError(f"{place}: the {modality} {path} is missing.")
    if text.count(f"<{modality}>") != 1:
        raise RequestError(f"{place}: the text of a {modality} input holds <{modality}> once, not '{text}'.")
    return MediaInput(modality, text, path)


def _field(row: dict[str, Any], key: str, kind: type, *, place: str) -> Any:
    if not isinstance(row.get(key), kind):
        raise RequestError(f"{place}: '{key}' is missing or no {kind.__name__}.")
    return row[key]
