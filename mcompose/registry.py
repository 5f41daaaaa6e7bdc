"""A table of named objects that is filled at import and suggests the nearest name for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from mcompose.errors import UnknownNameError, nearest_name

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Table of names and objects, in the order in which they were added.

    Args:
        kind: What an entry is, for messages: ``"merge method"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Adds one entry.

        Raises:
            ValueError: The name is registered already, which is a programming error.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice.")
        self._entries[name] = thing

    def get(self, name: str) -> T:
        """Returns the entry of a name.

        Raises:
            UnknownNameError: No entry has this name; the hint suggests the nearest.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(
                f"'{name}' is not a known {self.kind}.", hint=nearest_name(name, self._entries)
            ) from None

    def names(self) -> tuple[str, ...]:
        """Returns all names, in the order of registration."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
