"""The errors that mcompose raises.

::

    McomposeError                   exit code 1: the run failed
    ├── RequestError                exit code 2: the request was wrong
    │   ├── RecipeError             a recipe that is not valid: file, line, key
    │   ├── UnknownNameError        a name that is not registered: suggests the nearest
    │   ├── CheckpointError         a checkpoint that cannot be read: missing, truncated, unsafe
    │   ├── AnatomyError            a checkpoint whose parts cannot be identified
    │   ├── CompositionError        sources that cannot be composed
    │   └── OutputError             an output folder that cannot be used
    ├── NumericsError               a tensor that is not finite, or does not fit its shape
    ├── StorageError                the disk is full or refused a write
    ├── HubError                    the Hub refused, or could not be reached
    └── InterruptedRunError         Ctrl-C: finished work is kept for the next run

A message is one sentence that names the culprit, its place and the rule; ``hint`` is the next step.
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

_QUOTED = 200  # most characters of another library's error in a message
_SLIP = 0.8  # similarity from which a free word counts as a misspelt known name


class McomposeError(Exception):
    """Base class of mcompose's errors.

    Args:
        message: One sentence that names the culprit and its place.
        hint: Next step for the user; empty when the message says it.
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
    """A recipe that is not valid.

    Args:
        message: One sentence with the key path.
        file: Path of the recipe as the user wrote it.
        line: Line in that file, from 1; 0 when the error does not belong to a line.
        hint: Next step for the user.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, hint: str = "") -> None:
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(place + message, hint=hint)
        self.file = file
        self.line = line


class UnknownNameError(RequestError):
    """A name that is not registered."""


class CheckpointError(RequestError):
    """A checkpoint that cannot be read."""


class AnatomyError(RequestError):
    """A checkpoint whose parts cannot be identified."""


class CompositionError(RequestError):
    """Sources that cannot be composed."""


class OutputError(RequestError):
    """An output folder that cannot be used."""


class NumericsError(McomposeError):
    """A tensor that is not finite, or does not have the expected shape."""


class StorageError(McomposeError):
    """The disk is full or refused a write."""


class HubError(McomposeError):
    """The Hub refused, or could not be reached."""


class InterruptedRunError(McomposeError):
    """The user interrupted the run."""


def first_line(error: object) -> str:
    """Shortens another library's error to quote it at the end of a sentence.

    Args:
        error: The library's error, or its text.

    Returns:
        The first line without its full stop, at most 200 characters; with the second line when the first ends with a
        colon. The name of the error's type when it has no text.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return text[:_QUOTED].rstrip(". ") or type(error).__name__


def slip_of(word: str, known: Iterable[str]) -> str | None:
    """Returns the known name that a word probably misspells, where words other than known names are allowed too.

    Args:
        word: Word that the user wrote.
        known: The names that exist.

    Returns:
        The very similar name; None when the word is a known name, or not similar to any.
    """
    names = list(dict.fromkeys(known))
    near = [] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=_SLIP)
    return near[0] if near else None


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Suggests a known name for a misspelt one.

    Args:
        name: Name that the user wrote.
        known: The names that exist.

    Returns:
        ``"Did you mean 'ties'?"``, or the list of known names when none is similar.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known names: {', '.join(names)}." if names else ""
