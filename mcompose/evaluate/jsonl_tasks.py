"""Tasks in mcompose's own form: JSON lines.

The first line is the header, every other line a question::

    {"task": "joint-common-3", "version": 1, "metric": "joint_letter", "modalities": ["image", ...], "chance": 0.25}
    {"id": "0", "inputs": [{"modality": "image", "path": "media/7.png", "text": "image <image>"}],
     "question": "what do all have in common ? ...", "answer": "C"}

``path`` is relative to the task file; an input of modality ``text`` has none. The prompt is the inputs' texts and the
question, joined by spaces.

Several metrics score the same answers: ``"metrics": ["teds", "edit_distance"]`` instead of ``"metric"``, or
``"also": ["letter_lenient"]`` beside it. ``extraction.graded`` lists those for tables, pages and captions,
``grounding.graded`` those for boxes and points. Of the first, more is better: it is what a search improves. A question
may have several right answers: ``"answer": ["7", "seven"]``. An answer in pixels is an object, ``{"box": [12, 30, 80,
200]}``; see ``grounding.references``.
``"domain"`` in a question, or in the header for all, says what its media are about: of a checkpoint with experts,
``eval`` then tells how right its router is, and can send media to their own or to wrong experts.
``"max_new_tokens"`` is 16, and 512 when a metric is about tables, pages, captions, boxes or points.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from mcompose.errors import RequestError
from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.evaluate.grounding.references import reference_text
from mcompose.evaluate.metrics import expanded, graded, rule_for
from mcompose.evaluate.option_letters import choices_in
from mcompose.evaluate.task import Item, MediaInput, Task
from mcompose.media import picture_size
from mcompose.modalities import MODALITIES

__all__ = ["load_lines", "read_lines"]

_WORDS: Final = 16
_PAGE: Final = 512
_KNOWN: Final = frozenset({*MODALITIES, "text"})


def load_lines(file: Path, *, limit: int | None = None, check_media: bool = True) -> Task:
    """Reads a task of this form.

    Args:
        file: The task file.
        limit: Only the first so many questions.
        check_media: Refuse a file that is not there.

    Returns:
        The task.

    Raises:
        RequestError: A line is no question, the metric is unknown, or a medium is missing; the message has the place.
    """
    header, *rows = read_lines(file, empty="Its first line is a header with task, version, metric, modalities.")
    place = f"{file}:1"
    metrics = _metrics(header, place=place)
    domain = _domain(header, "", place=place)
    items = tuple(_item(row, domain, file=file, line=i + 2, check=check_media) for i, row in enumerate(rows[:limit]))
    if not items:
        raise RequestError(f"{file} asks nothing: it has no line after its header.")
    for line, item in enumerate(items, start=2):
        _check_answers(item, metrics, place=f"{file}:{line}")
    return Task(
        name=_field(header, "task", str, place=place),
        version=_field(header, "version", int, place=place),
        metric=metrics[0],
        modalities=tuple(_field(header, "modalities", list, place=place)),
        chance=float(header.get("chance", 0.0)),
        items=items,
        max_new_tokens=int(header.get("max_new_tokens", _longest(metrics))),
        file=file,
        also=metrics[1:],
    )


def read_lines(file: Path, *, empty: str) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file.

    Args:
        file: The file.
        empty: What to say about a file without any.

    Returns:
        One object per line that is not blank.

    Raises:
        RequestError: A line is not a JSON object, or there is none.
    """
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{file}:{number}: this line is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise RequestError(f"{file}:{number}: this line is not a JSON object.")
        rows.append(row)
    if not rows:
        raise RequestError(f"{file} is empty.", hint=empty)
    return rows


def _metrics(header: dict[str, Any], *, place: str) -> tuple[str, ...]:
    """Their names; what a metric lacks on this machine is told here, before anything is loaded."""
    if "metrics" in header and {"metric", "also"} & header.keys():
        raise RequestError(f"{place}: 'metrics' stands instead of 'metric' and 'also', not beside them.")
    if "metrics" in header:
        listed = _field(header, "metrics", list, place=place)
    else:
        listed = [_field(header, "metric", str, place=place), *header.get("also", ())]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise RequestError(f"{place}: 'metrics' is a list of names.")
    names = expanded(listed)
    for name in names:
        rule_for(name)
        if entry := graded(name):
            entry.refuse_missing(name)
    first = graded(names[0])
    if first is not None and first.less_is_better:
        raise RequestError(
            f"{place}: of a task's first metric more is better, and of '{names[0]}' less is.",
            hint=f'Put another one first, such as edit_similarity: "metrics": ["edit_similarity", "{names[0]}"].',
        )
    return names


def _longest(metrics: tuple[str, ...]) -> int:
    entries = [graded(name) for name in metrics]
    return _PAGE if any(entry is not None and not entry.short for entry in entries) else _WORDS


def _check_answers(item: Item, metrics: tuple[str, ...], *, place: str) -> None:
    for name in metrics:
        entry = graded(name)
        if entry is None or entry.check is None:
            continue
        for reference in (item.answer, *item.accepted):
            try:
                entry.check(reference)
            except BadReferenceError as error:
                raise BadReferenceError(f"{place}: question {item.id} cannot be scored by '{name}'. {error}") from error


def _domain(row: dict[str, Any], default: str, *, place: str) -> str:
    return _field(row, "domain", str, place=place) if "domain" in row else default


def _item(row: dict[str, Any], domain: str, *, file: Path, line: int, check: bool) -> Item:
    place = f"{file}:{line}"
    listed = _field(row, "inputs", list, place=place)
    question = _field(row, "question", str, place=place)
    inputs = tuple(_input(entry, file=file, place=place, check=check) for entry in listed)
    answer, *accepted = _answers(row, inputs, place=place)
    return Item(
        id=str(row.get("id", line - 2)),
        inputs=inputs,
        question=question,
        answer=answer,
        choices=choices_in(question),
        accepted=tuple(accepted),
        domain=_domain(row, domain, place=place),
    )


def _answers(row: dict[str, Any], inputs: tuple[MediaInput, ...], *, place: str) -> list[str]:
    given = row.get("answer")
    listed: list[Any] = given if isinstance(given, list) else [given]
    if not listed or not all(isinstance(one, str | dict) for one in listed):
        raise RequestError(f"{place}: 'answer' is missing, or neither a text nor a list of texts.")

    def size_of() -> tuple[int, int]:
        pictures = [one.path for one in inputs if one.modality == "image" and one.path is not None]
        if not pictures:
            raise BadReferenceError("An answer with pixels needs the 'size' of its picture, and there is no picture.")
        return picture_size(pictures[0])

    try:
        return [one if isinstance(one, str) else reference_text(one, size_of=size_of) for one in listed]
    except RequestError as error:
        raise BadReferenceError(f"{place}: {error.message}", hint=error.hint) from error


def _input(entry: Any, *, file: Path, place: str, check: bool) -> MediaInput:
    if not isinstance(entry, dict):
        raise RequestError(f"{place}: an input is an object with modality, text and path.")
    modality = _field(entry, "modality", str, place=place)
    text = _field(entry, "text", str, place=place)
    if modality not in _KNOWN:
        raise RequestError(f"{place}: '{modality}' is not a modality.", hint=f"Known: {', '.join(sorted(_KNOWN))}.")
    if modality == "text":
        return MediaInput(modality, text, None)
    path = file.parent / _field(entry, "path", str, place=place)
    if check and not path.is_file():
        raise RequestError(f"{place}: the {modality} {path} is missing.")
    if text.count(f"<{modality}>") != 1:
        raise RequestError(f"{place}: the text of a {modality} input holds <{modality}> once, not '{text}'.")
    return MediaInput(modality, text, path)


def _field(row: dict[str, Any], key: str, kind: type, *, place: str) -> Any:
    if not isinstance(row.get(key), kind):
        raise RequestError(f"{place}: '{key}' is missing or no {kind.__name__}.")
    return row[key]
