"""One training sample, and how a record of a dataset becomes one.

Two layouts of records are read:

- ``llava``: ``conversations`` of ``{"from": "human" | "gpt", "value": text}`` with ``<image>``, ``<audio>``,
  ``<video>``, ``<points>`` in the text, and the media under those names: a path or a list of them.
- ``chat``: ``messages`` of ``{"role", "content"}``; a content is a text as above, or a list of parts
  ``{"type": "text", "text"}`` and ``{"type": "image", "path"}``. A medium without a path takes the next under its name.

Text is kept letter by letter. Between the parts of a list stand the line breaks that a composed checkpoint's chat
template puts there, so that training and answering see the same prompt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mcompose.errors import RequestError
from mcompose.modalities import MODALITIES
from mcompose.recipe import INSTRUCTION

__all__ = ["Sample", "instructed", "parse_record"]

Message = dict[str, Any]
_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PLACEHOLDER: Final = re.compile(r"<(image|audio|video|points?)>")
_COLUMNS: Final = {
    "image": ("image", "images"),
    "audio": ("audio", "audios"),
    "video": ("video", "videos"),
    "points": ("points", "point"),
}
_HOLDERS: Final = ("path", "url", "bytes")


@dataclass(frozen=True)
class Sample:
    """One conversation with its media, still in their files.

    Args:
        messages: ``{"role", "content": [{"type": "text", "text"} | {"type": modality, "path" | "bytes"}]}``; at least
            one is an answer.
        domain: Domain of the sample; None when its dataset names none.
        dataset: Its dataset's name.
        index: Its place in the dataset, counted from 0.
        place: Place in the files, for messages: ``data/a.jsonl:7``.
        on_long: What its dataset wants done when it is too long: "error", "skip" or "cut".
        rejected: The same conversation with the answer that was not chosen; None where there is one answer only. Then
            only the last answer is learned.
    """

    messages: tuple[Message, ...]
    domain: str | None
    dataset: str
    index: int
    place: str = ""
    on_long: str = "error"
    rejected: tuple[Message, ...] | None = None

    @property
    def other(self) -> Sample | None:
        """The sample whose answer was not chosen; None where there is one answer only."""
        if self.rejected is None:
            return None
        return replace(self, messages=self.rejected, rejected=self.messages)

    def media(self) -> dict[str, list[Path | bytes]]:
        """Modality -> its items in reading order; modalities without any are left out."""
        found: dict[str, list[Path | bytes]] = {}
        for part in (part for message in self.messages for part in message["content"] if part["type"] != "text"):
            item = part["bytes"] if part.get("bytes") is not None else Path(part["path"])
            found.setdefault(part["type"], []).append(item)
        return found

    def characters(self) -> int:
        """Characters of its text."""
        parts = (part for message in self.messages for part in message["content"])
        return sum(len(part["text"]) for part in parts if part["type"] == "text")


def parse_record(record: Any, *, layout: str, folder: Path) -> tuple[Message, ...]:
    """Reads one record.

    Args:
        record: The record.
        layout: "llava", "chat" or "auto".
        folder: Folder that relative paths of media start from.

    Returns:
        The messages of a :class:`Sample`.

    Raises:
        RequestError: Saying what is wrong with the record, without its place.
    """
    if not isinstance(record, Mapping):
        raise RequestError("the record is not JSON object.")
    key = _layout_key(record, layout)
    turns = record[key]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RequestError(f"'{key}' is not a list of turns.")
    waiting = {modality: iter(_column(record, modality)) for modality in MODALITIES}
    messages = tuple(_message(turn, waiting, folder) for turn in turns)
    for modality, rest in waiting.items():
        if left := len(list(rest)):
            raise RequestError(f"{left} {modality} item(s) have no <{modality}> in the text.")
    _check_turns(messages)
    return messages


def _layout_key(record: Mapping[str, Any], layout: str) -> str:
    keys = {"llava": ("conversations",), "chat": ("messages",)}.get(layout, ("conversations", "messages"))
    found = next((key for key in keys if record.get(key) is not None), None)
    if found is None:
        raise RequestError(
            f"the record has no '{keys[0]}'."
            if len(keys) == 1
            else f"the record has neither {' nor '.join(map(repr, keys))}."
        )
    return found


def _column(record: Mapping[str, Any], modality: str) -> list[Any]:
    named = [key for key in _COLUMNS[modality] if record.get(key) is not None]
    if len(named) > 1:
        raise RequestError(f"the record has both '{named[0]}' and '{named[1]}'.")
    if not named:
        return []
    value = record[named[0]]
    return list(value) if isinstance(value, list | tuple) else [value]


def _message(turn: Any, waiting: Mapping[str, Iterator[Any]], folder: Path) -> Message:
    if not isinstance(turn, Mapping):
        raise RequestError("a turn is not JSON object.")
    said = turn.get("from", turn.get("role"))
    role = _ROLES.get(str(said))
    if role is None:
        raise RequestError(f"a turn is by '{said}', and none of {', '.join(_ROLES)}.")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, str):
        return {"role": role, "content": _split_text(content, waiting, folder)}
    if not isinstance(content, Sequence):
        raise RequestError(f"a turn by '{said}' has no text.")
    return {"role": role, "content": _parts(content, waiting, folder)}


def _split_text(text: str, waiting: Mapping[str, Iterator[Any]], folder: Path) -> list[dict[str, Any]]:
    """Returns the parts of a text with placeholders; what stands around them is kept as it is."""
    parts: list[dict[str, Any]] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > end:
            parts.append({"type": "text", "text": text[end : match.start()]})
        modality = "points" if match[1] == "point" else match[1]
        parts.append(_next_medium(modality, waiting, folder))
        end = match.end()
    if end < len(text) or not parts:
        parts.append({"type": "text", "text": text[end:]})
    return parts


def _parts(content: Sequence[Any], waiting: Mapping[str, Iterator[Any]], folder: Path) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for entry in content:
        kind = str(entry.get("type")).removesuffix("_url").removeprefix("input_") if isinstance(entry, Mapping) else ""
        if kind == "text" and isinstance(entry.get("text"), str):
            if found := _PLACEHOLDER.search(entry["text"]):
                raise RequestError(f"a text part holds '{found[0]}', which stands for a medium.")
            parts.append({"type": "text", "text": entry["text"]})
        elif kind in MODALITIES:
            held = next((entry[key] for key in (kind, entry["type"], *_HOLDERS) if entry.get(key) is not None), None)
            parts.append(_next_medium(kind, waiting, folder) if held is None else _medium(kind, held, folder))
            parts.append({"type": "text", "text": "\n"})
        else:
            raise RequestError(f"a part of a turn is neither text nor a medium: {str(entry)[:60]}")
    return _without_last_breaks(parts)


def _without_last_breaks(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = list(parts)
    while kept and kept[-1]["type"] == "text":
        text = kept.pop()["text"].rstrip("\n")
        if text:
            return [*kept, {"type": "text", "text": text}]
    return kept or [{"type": "text", "text": ""}]


def _next_medium(modality: str, waiting: Mapping[str, Iterator[Any]], folder: Path) -> dict[str, Any]:
    held = next(waiting[modality], None)
    if held is None:
        raise RequestError(f"the text has more <{modality}> than the record has {modality} items.")
    return _medium(modality, held, folder)


def _medium(modality: str, held: Any, folder: Path) -> dict[str, Any]:
    if isinstance(held, Mapping):  # {"bytes", "path"} of Hugging Face datasets, {"url"} of chat interfaces
        held = next((held[key] for key in ("bytes", "path", "url") if held.get(key) is not None), None)
    if isinstance(held, bytes):
        return {"type": modality, "bytes": held}
    if not isinstance(held, str) or not held:
        raise RequestError(f"the {modality} is not a path: {str(held)[:60]}")
    if "://" in held and not held.startswith("file://"):
        raise RequestError(f"the {modality} '{held}' is not a local file; nothing is fetched while training.")
    # Not by pathlib, which is several times slower, and a dataset has millions of these.
    return {"type": modality, "path": os.path.join(folder, held.removeprefix("file://"))}  # noqa: PTH118


def _check_turns(messages: Sequence[Message]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RequestError("the record has no answer to learn from.")
    for message in answers:
        if any(part["type"] != "text" for part in message["content"]):
            raise RequestError("an answer holds a medium, which cannot be learnt.")
        if not "".join(part["text"] for part in message["content"]).strip():
            raise RequestError("an answer is empty.")


def instructed(messages: Sequence[Message], template: str | None) -> tuple[Message, ...]:
    """Puts every instruction into a template.

    Args:
        messages: The messages.
        template: Text with ``{instruction}``, which stands for a user's whole turn; None leaves all as it is.

    Returns:
        The messages; answers and system messages are unchanged.
    """
    if template is None:
        return tuple(messages)
    before, after = template.split(INSTRUCTION)
    return tuple(_wrapped(message, before, after) if message["role"] == "user" else message for message in messages)


def _wrapped(message: Message, before: str, after: str) -> Message:
    parts = [{"type": "text", "text": before}, *message["content"], {"type": "text", "text": after}]
    return {**message, "content": [part for part in parts if part["type"] != "text" or part["text"]]}
