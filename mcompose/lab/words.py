"""The lab's language: its vocabulary, and the attributes of each number.

One word is one token. A prompt lists its inputs, asks, and ends with ``answer``; the answer is one word::

    image <image> audio <audio> what do all have in common ? A even B square C large D prime answer

A number written as text takes the place of media: ``image um seven here``. The words around it make room for media of
several tokens, and vary the position of the number.
"""

from __future__ import annotations

from typing import Final

from mcompose.modalities import MODALITIES

__all__ = [
    "ATTRIBUTES",
    "FILLERS",
    "LETTERS",
    "NUMBERS",
    "NUMBER_WORDS",
    "VOCABULARY",
]

NUMBERS: Final = tuple(range(10))
LETTERS: Final = ("A", "B", "C", "D")

NUMBER_WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip

# Numbers that each attribute is true of. No set is inside another, so no attribute implies another.
ATTRIBUTES: Final[dict[str, frozenset[int]]] = {
    "even": frozenset({0, 2, 4, 6, 8}),
    "odd": frozenset({1, 3, 5, 7, 9}),
    "small": frozenset({0, 1, 2, 3, 4}),
    "large": frozenset({5, 6, 7, 8, 9}),
    "middle": frozenset({3, 4, 5, 6}),
    "prime": frozenset({2, 3, 5, 7}),
    "square": frozenset({0, 1, 4, 9}),
    "triple": frozenset({0, 3, 6, 9}),
}

FILLERS: Final = ("um", "here", "this", "is", "now", "so", "look", "well")

_FRAME = ("text", "which", "number", "or", "?", "what", "do", "all", "have", "in", "common", "sum", "of")
_FRAME += ("same", "larger", "the", "true", "are", "they", "answer", "yes", "no")

SPECIAL: Final = ("<pad>", "<bos>", "<eos>", "<unk>")

VOCABULARY: Final = (
    *SPECIAL,
    *NUMBER_WORDS,
    *ATTRIBUTES,
    *LETTERS,
    *MODALITIES,
    *FILLERS,
    *_FRAME,
)
