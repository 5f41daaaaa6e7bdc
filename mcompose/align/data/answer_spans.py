"""A tokenizer that remembers which tokens came from marked stretches of text.

A processor expands placeholders and then tokenizes, so positions in the text that it was given say nothing about
tokens. But marks put into that text travel through the expansion with the words that they enclose. This wrapper stands
in the place of the processor's tokenizer, takes the marks out, and finds by the tokenizer's own offsets which tokens
hold marked characters. The tokens are those of the text without marks, whole, so that no seam changes how it is split.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mcompose.errors import RequestError

__all__ = ["START", "MarkingTokenizer", "mark", "marking_processor"]

# Unicode keeps these for the inside of programs: no text holds them.
START, END = "\ufdd0", "\ufdd1"


def mark(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Marks stretches of a text.

    Args:
        text: The text.
        spans: (start, end) of each, in order and apart from each other.

    Returns:
        The text with marks around them.

    Raises:
        RequestError: The text holds such marks already.
    """
    if START in text or END in text:
        raise RequestError(f"the text holds U+{ord(START):04X} or U+{ord(END):04X}, which are no characters.")
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], START, text[start:end], END]
        done = end
    return "".join([*pieces, text[done:]])


def marking_processor(processor: Any) -> tuple[Any, MarkingTokenizer]:
    """Returns a copy of a processor that understands marks.

    Args:
        processor: A processor or a tokenizer; it is left as it is.

    Returns:
        What to call in its place, and the tokenizer that remembers.

    Raises:
        RequestError: The tokenizer cannot say where its tokens stand in the text.
    """
    inner = getattr(processor, "tokenizer", processor)
    if not getattr(inner, "is_fast", False):
        raise RequestError(
            f"{type(inner).__name__} does not say which characters a token holds, so answers cannot be found.",
            hint="Give the checkpoint a tokenizer.json.",
        )
    marking = MarkingTokenizer(inner)
    if inner is processor:
        return marking, marking
    twin = copy.copy(processor)
    twin.tokenizer = marking
    return twin, marking


class MarkingTokenizer:
    """Stands for a tokenizer; ``marked`` is what its last call found.

    Args:
        inner: A tokenizer with offsets. All its attributes are reached through this object.
    """

    def __init__(self, inner: Any) -> None:
        self.__dict__["inner"] = inner
        self.__dict__["marked"] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["inner"], name, value)

    def __len__(self) -> int:
        return len(self.__dict__["inner"])

    def __call__(self, text: str | Sequence[str], **kwargs: Any) -> Any:
        """Tokenizes texts without their marks; padding goes to the right, as training wants it.

        Args:
            text: A text or several.
            **kwargs: For the tokenizer.

        Returns:
            What the tokenizer returns.
        """
        rows = [text] if isinstance(text, str) else list(text)
        parted = [_unmark(row) for row in rows]
        asked = {**kwargs, "return_offsets_mapping": True, "padding_side": "right"}
        encoded = self.inner([clean for clean, _ in parted], **asked)
        offsets = encoded.pop("offset_mapping")
        self.__dict__["marked"] = [
            _touches(np.asarray(row), spans) for row, (_, spans) in zip(offsets, parted, strict=True)
        ]
        return encoded


def _unmark(text: str) -> tuple[str, list[tuple[int, int]]]:
    pieces, spans, length = [], [], 0
    first, *rest = text.split(START)
    pieces.append(first)
    length = len(first)
    for piece in rest:
        inside, _, after = piece.partition(END)
        spans.append((length, length + len(inside)))
        pieces += [inside, after]
        length += len(inside) + len(after)
    return "".join(pieces), spans


def _touches(offsets_L2: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns which tokens hold a marked character (L,); tokens without any (padding, a first token) do not."""
    starts_L, ends_L = offsets_L2[:, 0], offsets_L2[:, 1]
    marked_L = np.zeros(len(offsets_L2), dtype=bool)
    for first, last in spans:
        marked_L |= (starts_L < last) & (ends_L > first)
    return marked_L
