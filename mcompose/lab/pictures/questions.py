"""What can be asked of a picture, with its exact answer; and a picture's label as plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcompose.lab.pictures.picture import KINDS, Picture
from mcompose.lab.pictures.words import digits

__all__ = ["TASKS", "Question", "as_text", "questions_of"]

Truth = Mapping[str, Any]

TASKS: Final = {
    "chart-value": "chart", "chart-largest": "chart", "chart-table": "chart",
    "table-cell": "table", "table-row": "table",
    "document-word": "document", "document-line": "document", "document-formula": "document",
    "general-kind": "none", "general-colour": "none", "general-shape": "none", "general-count": "none",
    "general-side": "none", "general-digit": "none",
}  # fmt: skip
"""Task -> the domain that it tests. ``general-kind`` is asked of the pictures of every domain."""


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Args:
        task: A key of ``TASKS``.
        text: Words that end in ``answer``.
        answer: Words.
    """

    task: str
    text: str
    answer: str


def questions_of(picture: Picture) -> tuple[Question, ...]:
    """Everything that can be asked.

    Args:
        picture: The picture.

    Returns:
        The questions in a fixed order; none has two right answers.
    """
    return (*_ASKERS[picture.kind](picture.truth), Question("general-kind", "what is shown ? answer", picture.kind))


def as_text(picture: Picture) -> str:
    """The label as words: what the language model reads in place of a picture while it learns to look things up.

    Args:
        picture: The picture.

    Returns:
        Such as ``bar Jan 1 2 ; Feb 7``.
    """
    return f"{picture.kind} {_TELLERS[picture.kind](picture.truth)}"


def formula_words(truth: Truth) -> str:
    r"""A formula in LaTeX, words apart: ``\frac { 3 } { 5 } + 7 ^ { 2 }``."""
    one, other = (_term_words(term["form"], term["numbers"]) for term in truth["terms"])
    return f"{one} {truth['operator']} {other}"


def _term_words(form: str, numbers: list[int]) -> str:
    said = [digits(number) for number in numbers]
    if form == "fraction":
        return f"\\frac {{ {said[0]} }} {{ {said[1]} }}"
    if form == "power":
        return f"{said[0]} ^ {{ {said[1]} }}"
    return f"\\sqrt {{ {said[0]} }}" if form == "root" else said[0]


def _chart(truth: Truth) -> list[Question]:
    names, values = truth["names"], truth["values"]
    found = [Question("chart-value", f"value of {n} ? answer", digits(v)) for n, v in zip(names, values, strict=True)]
    if values.count(max(values)) == 1:
        found.append(Question("chart-largest", "which is largest ? answer", names[values.index(max(values))]))
    return [*found, Question("chart-table", "write the table answer", _pairs(truth))]


def _pairs(truth: Truth) -> str:
    return " ; ".join(f"{n} {digits(v)}" for n, v in zip(truth["names"], truth["values"], strict=True))


def _table(truth: Truth) -> list[Question]:
    found = []
    for row, values in zip(truth["rows"], truth["values"], strict=True):
        for column, value in zip(truth["columns"], values, strict=True):
            found.append(Question("table-cell", f"row {row} column {column} ? answer", digits(value)))
        found.append(Question("table-row", f"write row {row} answer", " ; ".join(map(digits, values))))
    return found


def _page(truth: Truth) -> list[Question]:
    found = []
    for number, (first, second, value) in enumerate(truth["lines"], start=1):
        words = (first, second, digits(int(value)))
        for place, word in enumerate(words, start=1):
            found.append(Question("document-word", f"line {number} word {place} ? answer", word))
        found.append(Question("document-line", f"write line {number} answer", " ".join(words)))
    return found


def _formula(truth: Truth) -> list[Question]:
    return [Question("document-formula", "write the formula answer", formula_words(truth))]


def _shapes(truth: Truth) -> list[Question]:
    found = [
        Question("general-colour", "what colour ? answer", truth["colour"]),
        Question("general-shape", "what shapes ? answer", truth["shape"]),
        Question("general-count", "how many ? answer", digits(truth["count"])),
    ]
    return found + ([Question("general-side", "where ? answer", truth["side"])] if truth["side"] else [])


def _digit(truth: Truth) -> list[Question]:
    return [Question("general-digit", "which number ? answer", digits(truth["digit"]))]


def _told_table(truth: Truth) -> str:
    return " ; ".join(
        f"{row} {column} {digits(value)}"
        for row, values in zip(truth["rows"], truth["values"], strict=True)
        for column, value in zip(truth["columns"], values, strict=True)
    )


def _told_page(truth: Truth) -> str:
    lines = ((number, *line) for number, line in enumerate(truth["lines"], start=1))
    return " ; ".join(f"line {n} {first} {second} {digits(int(value))}" for n, first, second, value in lines)


def _told_shapes(truth: Truth) -> str:
    return f"{truth['shape']} {truth['colour']} {digits(truth['count'])} {truth['side']}".strip()


_ASKERS: Final[dict[str, Callable[[Truth], list[Question]]]] = {
    "bar": _chart, "line": _chart, "pie": _chart, "table": _table, "page": _page, "formula": _formula,
    "shapes": _shapes, "digit": _digit,
}  # fmt: skip
_TELLERS: Final[dict[str, Callable[[Truth], str]]] = {
    "bar": _pairs, "line": _pairs, "pie": _pairs, "table": _told_table, "page": _told_page, "formula": formula_words,
    "shapes": _told_shapes, "digit": lambda truth: digits(truth["digit"]),
}  # fmt: skip
assert list(_ASKERS) == list(KINDS)
