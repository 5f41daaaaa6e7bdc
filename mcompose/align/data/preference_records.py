"""Reads preference records: a prompt, the chosen answer and the rejected answer.

The prompt is ``conversations`` or ``messages`` that end before the answer, or ``prompt`` (a text, or such a list). An
answer, ``chosen`` or ``rejected``, is a text, a turn, or a list of turns. If the record does not have a prompt, both
lists must start with the same one. Media are listed as in any record.
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
    """Returns whether a record has two answers."""
    return isinstance(record, Mapping) and all(record.get(key) is not None for key in ANSWERS)


def parse_pair(record: Mapping[str, Any], *, folder: Path) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Reads a preference record.

    Args:
        record: Record as parsed from JSON.
        folder: Folder where relative paths of media start.

    Returns:
        The messages with the chosen answer, and with the rejected one.

    Raises:
        RequestError: The record is malformed; the message does not name its place.
    """
    prompt = _prompt(record)
    before, answers = {}, {}
    for key in ANSWERS:
        before[key], answers[key] = _answer(record[key], key)
    if prompt is None:
        prompt = before["chosen"]
        if not prompt or before["rejected"] != prompt:
            raise RequestError("'chosen' and 'rejected' must start with the same prompt.")
    elif any(before.values()):
        raise RequestError("'chosen' and 'rejected' must be one answer each, since the record has a prompt.")
    media = {key: value for key, value in record.items() if key not in (*_PROMPTS, *ANSWERS)}
    chosen, rejected = (
        parse_record({**media, "messages": [*prompt, answers[key]]}, layout="chat", folder=folder) for key in ANSWERS
    )
    if chosen[-1] == rejected[-1]:
        raise RequestError("'chosen' and 'rejected' are the same answer.")
    return chosen, rejected


def _prompt(record: Mapping[str, Any]) -> list[Any] | None:
    keys = [key for key in _PROMPTS if record.get(key) is not None]
    if not keys:
        return None
    if len(keys) > 1:
        raise RequestError(f"the record has both '{keys[0]}' and '{keys[1]}'. Keep one of them.")
    value = record[keys[0]]
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, Sequence) or not turns:
        raise RequestError(f"'{keys[0]}' is not a list of turns.")
    if _is_answer(turns[-1]):
        raise RequestError(f"'{keys[0]}' must end before the answer, since the record has 'chosen' and 'rejected'.")
    return list(turns)


def _answer(value: Any, key: str) -> tuple[list[Any], Any]:
    """Splits a value into the turns before the answer, and the answer's turn."""
    if isinstance(value, str):
        return [], {"role": "assistant", "content": value}
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or not turns or not _is_answer(turns[-1]):
        raise RequestError(f"'{key}' is not an answer: it must be a text or end with an assistant's turn.")
    return list(turns[:-1]), turns[-1]


def _is_answer(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("from", turn.get("role")) in {"gpt", "assistant"}
