"""Names of a room that are loaded on first use, so that a light command does not wait for what it does not need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(room: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a room's ``__init__``.

    Args:
        room: The room's module name.
        homes: Public name to the module below the room that defines it.

    Returns:
        A function that loads the module of a name and returns its value.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    return load
