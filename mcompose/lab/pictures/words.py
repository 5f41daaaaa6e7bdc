"""The vocabulary of the pictures: one word is one token, and a number is written digit by digit."""

from __future__ import annotations

from typing import Final

from mcompose.lab.pictures.documents import OPERATORS, ROLES
from mcompose.lab.pictures.ink import COLOURS
from mcompose.lab.pictures.picture import KINDS
from mcompose.lab.pictures.scenes import SHAPES, SIDES
from mcompose.lab.pictures.sources import COLUMN_NAMES, ROW_NAMES

__all__ = ["CHAT_TEMPLATE", "PLACEHOLDER", "VOCABULARY", "digits", "two_digits"]

PLACEHOLDER: Final = "<image>"
SPECIAL: Final = ("<pad>", "<bos>", "<eos>", "<unk>")
_DIGITS: Final = tuple(str(n) for n in range(10))
_FRAME: Final = (
    "value", "of", "?", "which", "is", "largest", "write", "the", "row", "column", "word", "what", "shown",
    "colour", "how", "many", "where", "number", "term", ";", "\\frac", "\\sqrt", "^", "{", "}",
)  # fmt: skip

VOCABULARY: Final = tuple(
    dict.fromkeys(
        (*SPECIAL, *_DIGITS, *ROW_NAMES, *COLUMN_NAMES, *KINDS, *COLOURS, *SHAPES, *SIDES, *OPERATORS, *ROLES, *_FRAME)
    )
)
"""All words; the placeholder comes after them."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
)
"""Chat template with the turns that the general model is trained on: question, answer, end."""


def digits(number: int) -> str:
    """Writes a number as words, ``"1 2"``."""
    return " ".join(str(number))


def two_digits(number: int) -> str:
    """Writes a number up to 99 as two words, ``"0 7"``, so that a tiny model always starts with the tens."""
    return " ".join(f"{number:02d}")
