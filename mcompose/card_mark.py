"""The last line of a model card: a digest of the rest, by which a card that a person has edited is recognised."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["is_edited_card", "with_mark"]

_MARK = "<!-- mcompose card "


def with_mark(text: str) -> str:
    """Returns a card with its last line."""
    return f"{text}\n{_MARK}{_digest(text)} -->\n"


def is_edited_card(path: Path) -> bool:
    """Returns whether a card exists that mcompose did not write in this form."""
    if not path.is_file():
        return False
    text, _, mark = path.read_text(encoding="utf-8", errors="replace").rpartition("\n" + _MARK)
    return mark != f"{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
