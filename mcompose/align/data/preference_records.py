"""Records of preferences: a prompt and two answers to it, one of which was chosen.

The prompt is ``conversations`` or ``messages`` that end before the answer, or ``prompt`` (a text, or such a list). An
answer, ``chosen`` or ``rejected``, is a text, a turn, or a list of turns; without a prompt of its own, the record's
prompt is what both lists begin with. Media stand beside them as in any record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcompose.align.data.samples import Message, parse_record
from mcompose.errors import RequestError

__all__ = ["ANSWERS", "is_pair", "parse_pair"]

ANSWERS: Final = ("chosen", "rejected")
_PROMPTS: Final = ("conversations", "messages", "prompt")


def is_pair(record: Any) -> bool:
    """Returns whether a record holds two answers."""
    return isinstance(record, Mapping) and all(record.get(key) is not None for key in ANSWERS)


def parse_pair(record: Mapping[str, Any], *, folder: Path) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Reads a record of preferences.

    Args:
        record: The record.
        folder: Folder that relative paths of media start from.

    Returns:
        The messages with the chosen answer, and with the rejected one.

    Raises:
        RequestError: Saying what is wrong with the record, without its place.
    """
    prompt = _prompt(record)
    before, answers = {}, {}
    for key in ANSWERS:
        before[key], answers[key] = _answer(record[key], key)
    if prompt is None:
        prompt = before["chosen"]
        if not prompt or before["rejected"] != prompt:
            raise RequestError("'chosen' and 'rejected' do not answer one prompt.")
    elif any(before.values()):
        raise RequestError("'chosen' and 'rejected' hold more than an answer, and the record has a prompt of its own.")
    media = {key: value for key, value in record.items() if key not in (*_PROMPTS, *ANSWERS)}
    chosen, rejected = (
        parse_record({**media, "messages": [*prompt, answers[key]]}, layout="chat", folder=folder) for key in ANSWERS
    )
    if chosen[-1] == rejected[-1]:
        raise RequestError("'chosen' and 'rejected' are the same answer.")
    return chosen, rejected


def _prompt(record: Mapping[str, Any]) -> list[Any] | None:
    named = [key for key in _PROMPTS if record.get(key) is not None]
    if not named:
        return None
    if len(named) > 1:
        raise RequestError(f"the record has both '{named[0]}' and '{named[1]}'.")
    value = record[named[0]]
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, Sequence) or not turns:
        raise RequestError(f"'{named[0]}' is not a list of turns.")
    if _is_answer(turns[-1]):
        raise RequestError(f"'{named[0]}' ends with an answer, and the record has 'chosen' and 'rejected'.")
    return list(turns)


def _answer(value: Any, key: str) -> tuple[list[Any], Any]:
    """Returns what stands before an answer, and its turn."""
    if isinstance(value, str):
        return [], {"role": "assistant", "content": value}
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or not turns or not _is_answer(turns[-1]):
        raise RequestError(f"'{key}' is not an answer.")
    return list(turns[:-1]), turns[-1]


def _is_answer(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("from", turn.get("role")) in {"gpt", "assistant"}
