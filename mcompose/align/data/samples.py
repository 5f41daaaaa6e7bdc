"""Training samples, and how records of a dataset are read as samples.

Records have one of two layouts:

- ``llava``: ``conversations`` of ``{"from": "human" | "gpt", "value": text}`` with ``<image>``, ``<audio>``,
  ``<video>``, ``<points>`` in the text, and the media under those names: a path or a list of paths.
- ``chat``: ``messages`` of ``{"role", "content"}``; ``content`` is a text as above, or a list of parts
  ``{"type": "text", "text"}`` and ``{"type": "image", "path"}``. A part without a path takes the next
  medium under that name.

Text is not changed. Parts of a list are joined with the line breaks that a composed checkpoint's chat template puts
there, so that training and generation see the same prompt.
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

__all__ = ["COLUMNS", "PLACEHOLDER", "Sample", "instructed", "media_items", "medium_part", "parse_record"]

Message = dict[str, Any]
_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
PLACEHOLDER: Final = re.compile(r"<(image|audio|video|points?)>")
"""What stands for a medium in a text."""
COLUMNS: Final = {
    "image": ("image", "images"),
    "audio": ("audio", "audios"),
    "video": ("video", "videos"),
    "points": ("points", "point"),
}
"""Modality to the fields of a record that may hold its media."""
_HOLDERS: Final = ("path", "url", "bytes")


@dataclass(frozen=True)
class Sample:
    """One conversation with its media, which are not read yet.

    Args:
        messages: ``{"role", "content": [{"type": "text", "text"} | {"type": modality, "path" | "bytes"}]}``; at least
            one is an answer.
        domain: Domain of its dataset; None if the dataset does not have one.
        dataset: Name of its dataset.
        index: Number of its record in the dataset, from 0.
        place: Location of the record for messages, such as ``data/a.jsonl:7``.
        on_long: Action if the sample is too long: "error", "skip" or "cut".
        rejected: Messages of the same conversation with the rejected answer, for a preference pair; None without a
            pair. In a pair, only the last answer is trained.
        task: What its loss and batches of one task go by: the task of its dataset, or the dataset's name.
    """

    messages: tuple[Message, ...]
    domain: str | None
    dataset: str
    index: int
    place: str = ""
    on_long: str = "error"
    rejected: tuple[Message, ...] | None = None
    task: str = ""

    @property
    def other(self) -> Sample | None:
        """The sample with the rejected answer; None if the sample is not a pair."""
        if self.rejected is None:
            return None
        return replace(self, messages=self.rejected, rejected=self.messages)

    def media(self) -> dict[str, list[Path | bytes]]:
        """Returns the media by modality, in reading order, without modalities that have none."""
        media: dict[str, list[Path | bytes]] = {}
        for part in (part for message in self.messages for part in message["content"] if part["type"] != "text"):
            item = part["bytes"] if part.get("bytes") is not None else Path(part["path"])
            media.setdefault(part["type"], []).append(item)
        return media

    def characters(self) -> int:
        """Counts the characters of its text."""
        parts = (part for message in self.messages for part in message["content"])
        return sum(len(part["text"]) for part in parts if part["type"] == "text")


def parse_record(record: Any, *, layout: str, folder: Path) -> tuple[Message, ...]:
    """Reads one record.

    Args:
        record: Record as parsed from JSON.
        layout: Layout of the record: "llava", "chat" or "auto".
        folder: Folder where relative paths of media start.

    Returns:
        The messages of a :class:`Sample`.

    Raises:
        RequestError: The record is malformed; the message does not name its place.
    """
    if not isinstance(record, Mapping):
        raise RequestError("the record is not a JSON object.")
    key = _layout_key(record, layout)
    turns = record[key]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RequestError(f"'{key}' is not a list of turns.")
    waiting = {modality: iter(media_items(record, modality)) for modality in MODALITIES}
    messages = tuple(_message(turn, waiting, folder) for turn in turns)
    for modality, rest in waiting.items():
        if unused := len(list(rest)):
            raise RequestError(
                f"{unused} {modality} item(s) have no <{modality}> placeholder in the text. Add one per item."
            )
    _check_turns(messages)
    return messages


def _layout_key(record: Mapping[str, Any], layout: str) -> str:
    keys = {"llava": ("conversations",), "chat": ("messages",)}.get(layout, ("conversations", "messages"))
    layout_key = next((key for key in keys if record.get(key) is not None), None)
    if layout_key is None:
        raise RequestError(
            f"the record does not have '{keys[0]}'."
            if len(keys) == 1
            else f"the record has neither {' nor '.join(map(repr, keys))}."
        )
    return layout_key


def media_items(record: Mapping[str, Any], modality: str) -> list[Any]:
    """Returns the media of one modality as a record writes them.

    Raises:
        RequestError: Two fields of the record hold media of the modality.
    """
    columns = [key for key in COLUMNS[modality] if record.get(key) is not None]
    if len(columns) > 1:
        raise RequestError(f"the record has both '{columns[0]}' and '{columns[1]}'. Keep one of them.")
    if not columns:
        return []
    value = record[columns[0]]
    return list(value) if isinstance(value, list | tuple) else [value]


def _message(turn: Any, waiting: Mapping[str, Iterator[Any]], folder: Path) -> Message:
    if not isinstance(turn, Mapping):
        raise RequestError("a turn is not a JSON object.")
    author = turn.get("from", turn.get("role"))
    role = _ROLES.get(str(author))
    if role is None:
        raise RequestError(f"a turn is by '{author}', which must be one of {', '.join(_ROLES)}.")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, str):
        return {"role": role, "content": _split_text(content, waiting, folder)}
    if not isinstance(content, Sequence):
        raise RequestError(f"a turn by '{author}' has no text.")
    return {"role": role, "content": _parts(content, waiting, folder)}


def _split_text(text: str, waiting: Mapping[str, Iterator[Any]], folder: Path) -> list[dict[str, Any]]:
    """Splits a text at its placeholders; the text between them is not changed."""
    parts: list[dict[str, Any]] = []
    end = 0
    for match in PLACEHOLDER.finditer(text):
        if match.start() > end:
            parts.append({"type": "text", "text": text[end : match.start()]})
        modality = "points" if match[1] == "point" else match[1]
        parts.append(_nextmedium_part(modality, waiting, folder))
        end = match.end()
    if end < len(text) or not parts:
        parts.append({"type": "text", "text": text[end:]})
    return parts


def _parts(content: Sequence[Any], waiting: Mapping[str, Iterator[Any]], folder: Path) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for entry in content:
        kind = str(entry.get("type")).removesuffix("_url").removeprefix("input_") if isinstance(entry, Mapping) else ""
        if kind == "text" and isinstance(entry.get("text"), str):
            if found := PLACEHOLDER.search(entry["text"]):
                raise RequestError(
                    f"a text part contains '{found[0]}', which is reserved for media. Use a part of that type instead."
                )
            parts.append({"type": "text", "text": entry["text"]})
        elif kind in MODALITIES:
            value = next((entry[key] for key in (kind, entry["type"], *_HOLDERS) if entry.get(key) is not None), None)
            parts.append(_nextmedium_part(kind, waiting, folder) if value is None else medium_part(kind, value, folder))
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


def _nextmedium_part(modality: str, waiting: Mapping[str, Iterator[Any]], folder: Path) -> dict[str, Any]:
    value = next(waiting[modality], None)
    if value is None:
        raise RequestError(f"the text has more <{modality}> than the record has items of '{modality}'.")
    return medium_part(modality, value, folder)


def medium_part(modality: str, value: Any, folder: Path) -> dict[str, Any]:
    """Returns the part of a message that a medium is: its type, and its path or its bytes.

    Args:
        modality: Its modality.
        value: As the record writes it.
        folder: Folder where relative paths start.

    Raises:
        RequestError: It is not a local file.
    """
    if isinstance(value, Mapping):  # {"bytes", "path"} of Hugging Face datasets, {"url"} of chat interfaces
        value = next((value[key] for key in ("bytes", "path", "url") if value.get(key) is not None), None)
    if isinstance(value, bytes):
        return {"type": modality, "bytes": value}
    if not isinstance(value, str) or not value:
        raise RequestError(f"the {modality} is not a path: {str(value)[:60]}")
    if "://" in value and not value.startswith("file://"):
        raise RequestError(f"the {modality} '{value}' is not a local file, and training downloads nothing.")
    # pathlib is several times slower, and a dataset has millions of these.
    return {"type": modality, "path": os.path.join(folder, value.removeprefix("file://"))}  # noqa: PTH118


def _check_turns(messages: Sequence[Message]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RequestError("the record has no answer.")
    for message in answers:
        if any(part["type"] != "text" for part in message["content"]):
            raise RequestError("an answer contains a medium, which cannot be trained. Move it to a user's turn.")
        if not "".join(part["text"] for part in message["content"]).strip():
            raise RequestError("an answer is empty.")


def instructed(messages: Sequence[Message], template: str | None) -> tuple[Message, ...]:
    """Puts every user's turn into a template.

    Args:
        messages: Messages of a sample.
        template: Text with ``{instruction}``, which stands for a user's whole turn; None changes nothing.

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
