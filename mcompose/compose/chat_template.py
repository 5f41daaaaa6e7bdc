"""The chat template of a composition's only multimodal source, for messages that are plain strings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

__all__ = ["chat_template_of", "string_template"]

_AS_PARTS: Final = (
    "{%- set strings = namespace(turns=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string"
    " else message['content'] -%}"
    "{%- set turn = dict(message, content=parts) if 'content' in message else message -%}"
    "{%- set strings.turns = strings.turns + [turn] -%}"
    "{%- endfor -%}"
    "{%- set messages = strings.turns %}\n"
)
"""Goes before a template that takes lists of parts only: a string becomes one part of text."""
_FILE: Final = "chat_template.jinja"
_OLD_FILE: Final = "chat_template.json"  # which processors still read before the tokenizer's, and tokenizers do not


def chat_template_of(tokenizer: Any, folder: Path) -> str | None:
    """Returns a source's own template.

    Args:
        tokenizer: The source's.
        folder: The source's checkpoint.

    Returns:
        The template, the default one of several; None when there is none.
    """
    old = None if (folder / _FILE).is_file() else _in_old_file(folder)
    template = old or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def string_template(tokenizer: Any, template: str) -> str | None:
    """Returns a template in a form that writes plain strings as they are, placeholders in them included.

    Args:
        tokenizer: The source's.
        template: The source's.

    Returns:
        The template, with a beginning that makes strings lists of parts where it takes only those; None when it changes
        what is said.
    """
    return next((form for form in (template, _AS_PARTS + template) if _writes_strings(tokenizer, form)), None)


def _in_old_file(folder: Path) -> Any:
    try:
        held = json.loads((folder / _OLD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held.get("chat_template") if isinstance(held, dict) else None


def _writes_strings(tokenizer: Any, template: str) -> bool:
    """Returns whether both speakers' words appear once and as they are, and no picture besides."""
    from jinja2 import TemplateError  # noqa: PLC0415 - comes with transformers' templates

    said = {"user": "<image>\nwhich one is it", "assistant": "it is this one"}
    turns = [{"role": role, "content": words} for role, words in said.items()]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return False
    return all(text.count(words) == 1 for words in said.values()) and text.count("image") == 1
