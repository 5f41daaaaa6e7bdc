"""Chats with media: content lists become text with placeholders, and the base model's own template does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .native_calls import PLACEHOLDERS

__all__ = ["DEFAULT_TEMPLATE", "flattened", "media_of"]

# For base models without a template: one line per turn.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Where a content entry may hold its medium.
_SOURCES = ("image", "video", "audio", "points", "url", "path", "base64")


def flattened(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a conversation whose contents are plain strings with placeholders.

    Args:
        conversation: Messages with ``role`` and ``content``: a string, or a list of entries such as
            ``{"type": "image"}`` and ``{"type": "text", "text": ...}``.

    Raises:
        ValueError: When an entry has a type that is neither text nor a modality.
    """
    return [{**message, "content": _text_of(message["content"])} for message in conversation]


def media_of(conversation: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns modality -> the media that the entries of a conversation hold themselves, in order."""
    found: dict[str, list[Any]] = {modality: [] for modality in PLACEHOLDERS}
    for message in conversation:
        if isinstance(message["content"], str):
            continue
        for entry in message["content"]:
            kind = _kind(entry)
            held = [entry[key] for key in _SOURCES if entry.get(key) is not None]
            if kind in found and held:
                found[kind].append(held[0])
    return found


def _text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for entry in content:
        kind = _kind(entry)
        if kind == "text":
            parts.append(entry["text"])
        elif kind in PLACEHOLDERS:
            # As in the sources' own prompts, a medium stands on its own line before the text.
            parts.append(PLACEHOLDERS[kind] + "\n")
        else:
            raise ValueError(
                f"A content entry has the type {entry.get('type')!r}; known: text, {', '.join(PLACEHOLDERS)}."
            )
    return "".join(parts).rstrip("\n")


def _kind(entry: Mapping[str, Any]) -> str | None:
    kind = entry.get("type")
    return kind.removesuffix("_url").removeprefix("input_") if isinstance(kind, str) else None
