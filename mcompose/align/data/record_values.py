"""What the names of a task's templates stand for: fields of a record, some of them written in a form of their own.

See ``instructions.py`` for the names and the fields that they are made from.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mcompose.align.data.samples import PLACEHOLDER, media_items, medium_part
from mcompose.errors import RequestError
from mcompose.media import picture_size
from mcompose.recipe import BoxForm
from mcompose.square import Square, write_numbers

__all__ = ["RecordValues"]


class RecordValues:
    """Values of one record, as text.

    Args:
        record: The record.
        boxes: How it writes boxes and points.
        align: Where a picture lies in its padded square.
        folder: Folder where relative paths of its media start.
    """

    def __init__(self, record: Mapping[str, Any], boxes: BoxForm, *, align: str, folder: Path) -> None:
        self._record, self._boxes, self._align, self._folder = record, boxes, align, folder

    def text(self, name: str) -> str:
        """Returns what a name stands for.

        Raises:
            RequestError: The record lacks a field for it, or the field cannot be read; the message has no place.
        """
        made = _FORMATTED[name](self) if name in _FORMATTED else self._plain(name)
        if found := PLACEHOLDER.search(made):
            raise RequestError(f"'{name}' contains '{found[0]}', which is reserved for media.")
        return made

    def _field(self, name: str) -> Any:
        if self._record.get(name) is None:
            raise RequestError(f"the record has no '{name}'.")
        return self._record[name]

    def _plain(self, name: str) -> str:
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RequestError(f"'{name}' must be a text or a number, not {_show(value)}.")
        return str(value)

    def _list(self, name: str) -> Sequence[Any]:
        value = self._field(name)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RequestError(f"'{name}' must be a list, not {_show(value)}.")
        return value

    def _entries(self, name: str, key: str) -> Iterable[tuple[str, list[Any]]]:
        """Yields word and boxes of every entry of a list."""
        for entry in self._list(name):
            word = entry.get(key) if isinstance(entry, Mapping) else None
            if not isinstance(word, str) or not word.strip():
                raise RequestError(f"an entry of '{name}' has no '{key}': {_show(entry)}.")
            boxes = entry.get("boxes", [entry["box"]] if "box" in entry else None)
            if not isinstance(boxes, Sequence) or isinstance(boxes, str) or not boxes:
                raise RequestError(f"'{word}' in '{name}' has no 'box'.")
            yield word, [self._written(box, 4) for box in boxes]

    @cached_property
    def _square(self) -> Square:
        """The padded square of its first picture."""
        width, height = self._record.get("width"), self._record.get("height")
        if not isinstance(width, int) or not isinstance(height, int):
            pictures = media_items(self._record, "image")
            if not pictures:
                raise RequestError("the record has boxes or points, and neither a picture nor 'width' and 'height'.")
            part = medium_part("image", pictures[0], self._folder)
            width, height = picture_size(part["bytes"] if "bytes" in part else Path(part["path"]))
        return Square(width, height, self._align)

    def _written(self, raw: Any, count: int) -> str:
        """Returns a point (2) or a box (4) as text."""
        kind = "box" if count == 4 else "point"
        is_list = isinstance(raw, Sequence) and not isinstance(raw, str)
        if not is_list or len(raw) != count or not all(_is_number(value) for value in raw):
            raise RequestError(f"a {kind} must be {count} numbers, not {_show(raw)}.")
        numbers = tuple(float(value) for value in raw)
        if count == 4 and self._boxes.form == "xywh":
            numbers = (*numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3])
        if count == 4 and (numbers[2] < numbers[0] or numbers[3] < numbers[1]):
            raise RequestError(f"the box {list(raw)} ends before it begins, read as '{self._boxes.form}'.")
        return write_numbers(self._in_square(numbers, raw, kind))

    def _in_square(self, numbers: tuple[float, ...], raw: Sequence[float], kind: str) -> tuple[float, ...]:
        if self._boxes.unit == "square":
            if any(not -0.01 <= value <= 1.01 for value in numbers):
                raise RequestError(f"the {kind} {list(raw)} is not in fractions of the square.")
            return numbers
        square = self._square
        if self._boxes.unit == "picture":
            numbers = tuple(v * (square.height if i % 2 else square.width) for i, v in enumerate(numbers))
        if not square.holds(numbers):
            size = f"{square.width} x {square.height}"
            raise RequestError(
                f"the {kind} {list(raw)}, read as {self._boxes.unit}, lies outside its picture of {size} pixels."
            )
        return square.fractions(numbers)

    def _box(self) -> str:
        return self._written(self._field("box"), 4)

    def _all_boxes(self) -> str:
        return ", ".join(self._written(box, 4) for box in self._list("boxes"))

    def _objects(self) -> str:
        boxes: dict[str, list[str]] = {}
        for name, found in self._entries("objects", "name"):
            boxes.setdefault(name, []).extend(found)
        return "\n".join(f"{name}: {', '.join(found)}" for name, found in boxes.items())

    def _classes(self) -> str:
        given = self._record.get("classes")
        if isinstance(given, str):
            return given
        if given is not None:
            return ", ".join(map(str, self._list("classes")))
        return ", ".join(dict.fromkeys(name for name, _ in self._entries("objects", "name")))

    def _grounded_caption(self) -> str:
        caption, made, start = self._plain("caption"), "", 0
        for phrase, boxes in self._entries("phrases", "phrase"):
            found = caption.find(phrase, start)
            if found < 0:
                raise RequestError(f"the phrase '{phrase}' is not in the caption, behind the phrases before it.")
            end = found + len(phrase)
            made, start = f"{made}{caption[start:end]} {', '.join(boxes)}", end
        return made + caption[start:]

    def _keypoints(self) -> str:
        given = self._field("keypoints")
        if isinstance(given, Mapping):
            there = {name: point for name, point in given.items() if point is not None}
            return ", ".join(f"{name} {self._point(point)}" for name, point in there.items())
        flat = list(self._list("keypoints"))
        if flat and len(flat) % 3 == 0 and all(_is_number(value) for value in flat):
            flat = [flat[start : start + 3] for start in range(0, len(flat), 3)]
        return ", ".join(self._point(point) for point in flat)

    def _point(self, raw: Any) -> str:
        if isinstance(raw, Sequence) and not isinstance(raw, str) and len(raw) == 3 and _is_number(raw[2]):
            return write_numbers(()) if not raw[2] else self._written(list(raw[:2]), 2)
        return self._written(raw, 2)

    def _texts(self) -> str:
        return "\n".join(f"{text} {', '.join(boxes)}" for text, boxes in self._entries("texts", "text"))

    def _choices(self) -> dict[str, str]:
        """Letter to text."""
        given = self._field("options")
        if isinstance(given, Mapping):
            return {str(letter): str(text) for letter, text in given.items()}
        listed = self._list("options")
        if len(listed) > len(string.ascii_uppercase):
            raise RequestError(f"'options' has {len(listed)} entries, more than there are letters.")
        return dict(zip(string.ascii_uppercase, map(str, listed), strict=False))

    def _options(self) -> str:
        if isinstance(self._record.get("options"), str):
            return self._plain("options")
        return "\n".join(f"{letter}. {text}" for letter, text in self._choices().items())

    def _letter(self) -> str:
        if self._record.get("letter") is not None:
            return self._plain("letter")
        choices, answer = self._choices(), self._field("answer")
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
            return list(choices)[answer]
        if str(answer) in choices:
            return str(answer)
        found = [letter for letter, text in choices.items() if text == str(answer)]
        if len(found) != 1:
            raise RequestError(f"the answer {_show(answer)} is none of the 'options', or several of them.")
        return found[0]

    def _table(self) -> str:
        if isinstance(self._record.get("table"), str):
            return self._plain("table")
        rows = self._list("table")
        if not rows or not all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows):
            raise RequestError("'table' must be a text or a list of rows.")
        return "\n".join(" | ".join(map(str, row)) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 60 else text[:57] + "..."


_FORMATTED: Final[dict[str, Callable[[Any], str]]] = {
    "box": RecordValues._box,
    "boxes": RecordValues._all_boxes,
    "objects": RecordValues._objects,
    "classes": RecordValues._classes,
    "grounded_caption": RecordValues._grounded_caption,
    "keypoints": RecordValues._keypoints,
    "texts": RecordValues._texts,
    "options": RecordValues._options,
    "letter": RecordValues._letter,
    "table": RecordValues._table,
}
