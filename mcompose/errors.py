"""Every error that mcompose raises on purpose.

::

    McomposeError                   exit code 1: the run failed
    ├── RequestError                exit code 2: the request was wrong
    │   ├── RecipeError             a recipe that cannot be followed: file, line, key
    │   ├── UnknownNameError        a name that no table holds: suggests the nearest
    │   ├── CheckpointError         a checkpoint that cannot be read: missing, truncated, unsafe
    │   ├── AnatomyError            a checkpoint whose parts cannot be told apart
    │   ├── CompositionError        sources that cannot be composed
    │   └── OutputError             an output folder that cannot be used
    ├── NumericsError               a tensor that is not finite, or does not fit its shape
    ├── StorageError                the disk is full or refused a write
    ├── HubError                    the Hub refused, or could not be reached
    └── InterruptedRunError         Ctrl-C: what was finished is kept for the next run

A message is one sentence that names the culprit and where it stands; ``hint`` says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AnatomyError",
    "CheckpointError",
    "CompositionError",
    "HubError",
    "InterruptedRunError",
    "McomposeError",
    "NumericsError",
    "OutputError",
    "RecipeError",
    "RequestError",
    "StorageError",
    "UnknownNameError",
    "first_line",
    "nearest_name",
    "slip_of",
]

_QUOTED = 200  # characters of a foreign error that a sentence has room for
_SLIP = 0.8  # likeness from which a word is taken for another, where it need not be one of the known ones


class McomposeError(Exception):
    """An error with a sentence for people.

    Args:
        message: One sentence that names the culprit and where it stands.
        hint: What to do next; empty when the message says it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RequestError(McomposeError):
    """The request was wrong; nothing was run."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe that cannot be followed.

    Args:
        message: What is wrong, with the key path.
        file: Path of the recipe as the user gave it.
        line: Line in that file, counted from 1; 0 when no line is to blame.
        hint: What to do next.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, hint: str = "") -> None:
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(place + message, hint=hint)
        self.file = file
        self.line = line


class UnknownNameError(RequestError):
    """A name that no table holds."""


class CheckpointError(RequestError):
    """A checkpoint that cannot be read."""


class AnatomyError(RequestError):
    """A checkpoint whose parts cannot be told apart."""


class CompositionError(RequestError):
    """Sources that cannot be composed."""


class OutputError(RequestError):
    """An output folder that cannot be used."""


class NumericsError(McomposeError):
    """A tensor that is not finite, or does not fit."""


class StorageError(McomposeError):
    """The disk is full or refused a write."""


class HubError(McomposeError):
    """The Hub refused, or could not be reached."""


class InterruptedRunError(McomposeError):
    """The user interrupted the run."""


def first_line(error: object) -> str:
    """Quotes what a library says of an error, as the end of a sentence.

    Args:
        error: The library's error, or its text.

    Returns:
        Its first line without a full stop, 200 characters at the most; with the next line where the first only
        announces it with a colon. The error's type when it says nothing.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return text[:_QUOTED].rstrip(". ") or type(error).__name__


def slip_of(word: str, known: Iterable[str]) -> str | None:
    """The name that a freely chosen word is probably a slip of the pen for.

    Args:
        word: What the user wrote, where other words than the known ones are right as well.
        known: The names that exist.

    Returns:
        The name that it is very like; None when it is one of them, or like none.
    """
    names = list(dict.fromkeys(known))
    near = [] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=_SLIP)
    return near[0] if near else None


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Words a suggestion for a misspelt name.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        ``"Did you mean 'ties'?"``, or the list of known names when none is near.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known names: {', '.join(names)}." if names else ""
