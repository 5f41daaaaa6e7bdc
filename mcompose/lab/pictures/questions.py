"""Questions about a picture with exact answers; and a picture's label as plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcompose.lab.pictures.picture import KINDS, Picture
from mcompose.lab.pictures.words import digits, two_digits

__all__ = ["LISTS", "TASKS", "Question", "as_text", "questions_of"]

Truth = Mapping[str, Any]

TASKS: Final = {
    "chart-value": "chart", "chart-largest": "chart", "chart-table": "chart",
    "table-cell": "table", "table-row": "table",
    "document-word": "document", "document-line": "document", "document-formula": "document",
    "general-kind": "none", "general-colour": "none", "general-shape": "none", "general-count": "none",
    "general-side": "none", "general-digit": "none",
}  # fmt: skip
"""Task -> the domain that it tests. ``general-kind`` is asked about the pictures of every domain."""
LISTS: Final = ("chart-table", "table-row", "document-line", "document-formula")
"""Tasks whose answers list several things."""


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Args:
        task: A key of ``TASKS``.
        text: Words of the question; what has to be looked up comes last.
        answer: Words of the right answer.
        sources: Index of the mark that each word of the answer is read from; -1 for none. Empty when not known.
    """

    task: str
    text: str
    answer: str
    sources: tuple[int, ...] = ()


def questions_of(picture: Picture) -> tuple[Question, ...]:
    """Returns all questions about a picture.

    Args:
        picture: The picture.

    Returns:
        The questions in a fixed order; each has exactly one right answer.
    """
    return (*_ASKERS[picture.kind](picture.truth), Question("general-kind", "what is shown ?", picture.kind))


def as_text(picture: Picture) -> str:
    """Writes the label as words, which replace the picture while the language model learns to look things up.

    Args:
        picture: The picture.

    Returns:
        A text such as ``bar Jan 1 2 ; Feb 0 7``.
    """
    return f"{picture.kind} {_LABEL_TEXTS[picture.kind](picture.truth)}"


def formula_words(truth: Truth) -> str:
    r"""Writes a formula in LaTeX, with spaces between its words: ``\frac { 3 } { 5 } + 7 ^ { 2 }``."""
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
    # Marks: for each item its name, then its value.
    names, values = truth["names"], truth["values"]
    found = [
        Question("chart-value", f"value of {name}", two_digits(value), (2 * i + 1,) * 2)
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    if values.count(max(values)) == 1:
        place = values.index(max(values))
        found.append(Question("chart-largest", "which is largest ?", names[place], (2 * place + 1,)))
    sources = [place for i in range(len(names)) for place in (-1, 2 * i, 2 * i + 1, 2 * i + 1)][1:]
    return [*found, Question("chart-table", "write the table", _pairs(truth), tuple(sources))]


def _pairs(truth: Truth) -> str:
    return " ; ".join(f"{n} {two_digits(v)}" for n, v in zip(truth["names"], truth["values"], strict=True))


def _table(truth: Truth) -> list[Question]:
    # Marks: the header row, then for each row its name and its cells.
    found = []
    wide = len(truth["columns"])
    for i, (row, values) in enumerate(zip(truth["rows"], truth["values"], strict=True)):
        first = wide + i * (wide + 1) + 1
        for j, (column, value) in enumerate(zip(truth["columns"], values, strict=True)):
            text = f"row {row} column {column}"
            found.append(Question("table-cell", text, two_digits(value), (first + j,) * 2))
        sources = [place for j in range(wide) for place in (-1, first + j, first + j)][1:]
        text = f"write row {row}"
        found.append(Question("table-row", text, " ; ".join(map(two_digits, values)), tuple(sources)))
    return found


def _page(truth: Truth) -> list[Question]:
    # Marks: three words per line.
    found = []
    for number, (first, second, value) in enumerate(truth["lines"], start=1):
        words = (first, second, two_digits(int(value)))
        begin = 3 * (number - 1)
        for place, word in enumerate(words, start=1):
            sources = (begin + place - 1,) * len(word.split())
            found.append(Question("document-word", f"line {number} word {place}", word, sources))
        sources = (begin, begin + 1, begin + 2, begin + 2)
        found.append(Question("document-line", f"write line {number}", " ".join(words), sources))
    return found


def _formula(truth: Truth) -> list[Question]:
    # Marks: the first term's numbers, the operator, the second term's numbers.
    words, sources, place = [], [], 0
    for term in truth["terms"]:
        said = [digits(number) for number in term["numbers"]]
        pieces = _term_words(term["form"], term["numbers"]).split()
        words += pieces
        sources += _number_sources(pieces, place)
        place += len(said)
        if place == len(said) and len(words) == len(pieces):
            words.append(truth["operator"])
            sources.append(place)
            place += 1
    return [Question("document-formula", "write the formula", " ".join(words), tuple(sources))]


def _number_sources(pieces: list[str], place: int) -> list[int]:
    """Returns for each word the number that its digit belongs to; a number ends where another word begins."""
    found = []
    for i, piece in enumerate(pieces):
        if not piece.isdigit() and i and pieces[i - 1].isdigit():
            place += 1
        found.append(place if piece.isdigit() else -1)
    return found


def _shapes(truth: Truth) -> list[Question]:
    found = [
        Question("general-colour", "what colour ?", truth["colour"]),
        Question("general-shape", "what shapes ?", truth["shape"]),
        Question("general-count", "how many ?", digits(truth["count"])),
    ]
    return found + ([Question("general-side", "where ?", truth["side"])] if truth["side"] else [])


def _digit(truth: Truth) -> list[Question]:
    return [Question("general-digit", "which number ?", digits(truth["digit"]))]


def _table_text(truth: Truth) -> str:
    return " ; ".join(
        f"{row} {column} {two_digits(value)}"
        for row, values in zip(truth["rows"], truth["values"], strict=True)
        for column, value in zip(truth["columns"], values, strict=True)
    )


def _page_text(truth: Truth) -> str:
    lines = ((number, *line) for number, line in enumerate(truth["lines"], start=1))
    return " ; ".join(f"line {n} {first} {second} {two_digits(int(value))}" for n, first, second, value in lines)


def _shapes_text(truth: Truth) -> str:
    return f"{truth['shape']} {truth['colour']} {digits(truth['count'])} {truth['side']}".strip()


_ASKERS: Final[dict[str, Callable[[Truth], list[Question]]]] = {
    "bar": _chart, "line": _chart, "pie": _chart, "table": _table, "page": _page, "formula": _formula,
    "shapes": _shapes, "digit": _digit,
}  # fmt: skip
_LABEL_TEXTS: Final[dict[str, Callable[[Truth], str]]] = {
    "bar": _pairs, "line": _pairs, "pie": _pairs, "table": _table_text, "page": _page_text, "formula": formula_words,
    "shapes": _shapes_text, "digit": lambda truth: digits(truth["digit"]),
}  # fmt: skip
assert list(_ASKERS) == list(KINDS)
