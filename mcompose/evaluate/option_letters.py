"""Finds letters of options in free text: the lenient rule, reported beside the published one and never instead of it.

The published rule looks at the first character alone. A model that answers "The answer is B." knows the answer and gets
nothing for it, so a second metric reads what a person would read. It gives up where a person would: no letter, or two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["choices_in", "parse_letter"]

_OPTION: Final = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_ALONE: Final = re.compile(r"[\s(\[*\"'`]*([A-Za-z])[\s)\].:,;*\"'`]*")
_LEADING: Final = re.compile(r"[\s(\[*\"'`]*([A-Z])\s*[)\].:,;*\"'`\n]")
_SAID: Final = re.compile(r"\b(?i:answer|option|choice)\b(?i:\s+is)?\s*[:=]?\s*(?:[(\[*\"'`]+([A-Za-z])\b|([A-Z])\b)")
_BRACKETED: Final = re.compile(r"[(\[]([A-Za-z])[)\]]")


def choices_in(question: str) -> dict[str, str]:
    """Finds the options that a question lists.

    Args:
        question: With lines such as ``A. a dog``; ``(A)``, ``A)`` and ``A:`` do too.

    Returns:
        Letter to text, in the question's order; empty when it lists none.
    """
    return dict(_OPTION.findall(question))


def parse_letter(output: str, choices: Mapping[str, str]) -> str | None:
    """Finds the option that an answer means.

    Tried in this order: the letter alone; a letter with a mark after it at the start; a letter after "answer", "option"
    or "choice"; a letter in brackets; the words of exactly one option (of "red" and "a red car", the longer).

    Args:
        output: What the model wrote.
        choices: Letter to text; empty: A to D, and no words.

    Returns:
        The letter, in capitals; None when it names none or more than one.
    """
    known = set(choices) or set("ABCD")
    whole = _ALONE.fullmatch(output)
    if whole:
        return _one({whole[1].upper()}, known)
    leading = _LEADING.match(output)
    if leading and leading[1] in known:
        return leading[1]
    for pattern in (_SAID, _BRACKETED):
        found = {"".join(match.groups(default="")).upper() for match in pattern.finditer(output)}
        if found & known:
            return _one(found & known, known)
    named = {letter: text for letter, text in choices.items() if _mentions(output, text)}
    longest = {
        a for a, text in named.items() if not any(a != b and _mentions(other, text) for b, other in named.items())
    }
    return _one(longest, known)


def _one(found: set[str], known: set[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 and found <= known else None


def _mentions(output: str, text: str) -> bool:
    wanted = re.escape(text.strip().rstrip(".").casefold())
    return bool(re.search(rf"(?<!\w){wanted}(?!\w)", output.casefold()))
