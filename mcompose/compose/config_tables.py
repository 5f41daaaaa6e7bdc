"""The language model's own table inside a ``config.json``, and changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["merged", "table_at", "text_place"]

WRAPPERS = ("thinker_config",)
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


def text_place(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields that lead to the language model's config; none when it is the config itself."""
    place: tuple[str, ...] = ()
    for names in (WRAPPERS, TEXT_CONFIGS):
        table = table_at(config, place)
        place += tuple(name for name in names if isinstance(table.get(name), dict))[:1]
    return place


def table_at(config: Mapping[str, Any], place: Sequence[str]) -> Mapping[str, Any]:
    """Returns a nested table."""
    for name in place:
        config = config[name]
    return config


def merged(
    changes: Mapping[str, Any], config: Mapping[str, Any], place: Sequence[str], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds fields of a nested table to the changes of a config.

    Args:
        changes: Top-level fields of the config that change.
        config: The config.
        place: Fields that lead to the table.
        fields: What changes in it.
    """
    if not place:
        return {**changes, **fields}
    if not fields:
        return dict(changes)
    name, *rest = place
    inner = config[name]
    made = merged(changes.get(name, inner), inner, rest, fields)
    return {**changes, name: {**inner, **made}}
