"""Reference answers with pixels: boxes and key points of a picture as fractions of its padded square.

In a task file an ``answer`` may be an object instead of a text; the picture's size is read from its file where ``size``
does not say it::

    {"box": [12, 30, 80, 200]}                                        left, top, right, bottom in pixels
    {"keypoints": {"nose": [20, 31]}, "box": [...], "area": 5200, "size": [640, 480], "align": "corner"}

``keypoints`` is a mapping of names, a list of [x, y] or [x, y, visible] (0: no label), or COCO's flat list; ``area`` is
in square pixels; ``sigmas`` are OKS's, for points that are not COCO's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mcompose.errors import nearest_name
from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.square import ALIGNMENTS, Numbers, Square, write_numbers

__all__ = ["reference_text"]

_KEYS: Final = ("box", "keypoints", "area", "size", "align", "sigmas")
_DIGITS: Final = 6


def reference_text(raw: Mapping[str, Any], *, size_of: Callable[[], tuple[int, int]]) -> str:
    """Returns the text that an answer is compared with.

    Args:
        raw: The object of the task file.
        size_of: Returns width and height of the question's picture.

    Returns:
        A box as text, or JSON text as ``keypoints`` reads it; six decimals.

    Raises:
        BadReferenceError: A key is unknown or not what it should be, or the box lies outside the picture.
    """
    for key in raw:
        if key not in _KEYS:
            hint = nearest_name(key, _KEYS)
            raise BadReferenceError(f"'{key}' is not a known key of an answer with pixels.", hint=hint)
    if "box" not in raw and "keypoints" not in raw:
        raise BadReferenceError("An answer with pixels has 'box' or 'keypoints'.")
    square = _square(raw, size_of)
    box = _inside(_numbers(raw["box"], 4, "box"), square, "box") if raw.get("box") is not None else None
    if "keypoints" not in raw:
        return write_numbers(box or (), digits=_DIGITS)
    table: dict[str, Any] = {"points": _points(raw["keypoints"], square)}
    if box is not None:
        table["box"] = _rounded(box)
    if raw.get("area") is not None:
        table["area"] = _numbers([raw["area"]], 1, "area")[0] / square.side**2
    if raw.get("sigmas") is not None:
        table["sigmas"] = list(_numbers(raw["sigmas"], len(table["points"]), "sigmas"))
    return json.dumps(table)


def _square(raw: Mapping[str, Any], size_of: Callable[[], tuple[int, int]]) -> Square:
    align = raw.get("align", "center")
    if align not in ALIGNMENTS:
        raise BadReferenceError(f"'align' is {' or '.join(ALIGNMENTS)}, not '{align}'.")
    width, height = size_of() if raw.get("size") is None else _numbers(raw["size"], 2, "size")
    return Square(int(width), int(height), align)


def _points(raw: Any, square: Square) -> Any:
    if isinstance(raw, Mapping):
        return {name: _point(point, square) for name, point in raw.items()}
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        rows = list(raw)
        if rows and len(rows) % 3 == 0 and all(isinstance(one, int | float) for one in rows):
            rows = [rows[start : start + 3] for start in range(0, len(rows), 3)]
        return [_point(point, square) for point in rows]
    raise BadReferenceError("'keypoints' is a mapping of names to points, or a list of points.")


def _point(raw: Any, square: Square) -> list[float]:
    if raw is None or raw == []:
        return []
    values = _numbers(raw, 3 if isinstance(raw, Sequence) and len(raw) == 3 else 2, "keypoints")
    if len(values) == 3 and not values[2]:
        return []
    return _rounded(_inside(values[:2], square, "point"))


def _inside(pixels: Numbers, square: Square, kind: str) -> Numbers:
    if not square.holds(pixels):
        size = f"{square.width} x {square.height}"
        raise BadReferenceError(f"The {kind} {list(pixels)} lies outside its picture of {size} pixels.")
    return square.fractions(pixels)


def _rounded(values: Numbers) -> list[float]:
    return [round(value, _DIGITS) for value in values]


def _numbers(raw: Any, count: int, key: str) -> Numbers:
    is_list = isinstance(raw, Sequence) and not isinstance(raw, str) and len(raw) == count
    if not is_list or any(
        isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in raw
    ):
        raise BadReferenceError(f"'{key}' must be {count} numbers, not {str(raw)[:60]}.")
    return tuple(map(float, raw))
