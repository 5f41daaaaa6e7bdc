"""What an extension of a composition adds to ``config.json``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["ConfigExtension"]


class ConfigExtension:
    """Fields of ``ComposedConfig`` that belong to one extension; ``extensions.py`` lists them all."""

    fields: ClassVar[Mapping[str, Any]] = {}
    """Name of each field, and its value in a composition without the extension."""

    def set_fields(self, config: Any, kwargs: dict[str, Any]) -> None:
        """Moves the fields from keyword arguments to a configuration; None stands for the default."""
        for key, default in self.fields.items():
            given = kwargs.pop(key, None)
            setattr(config, key, copy.deepcopy(default if given is None else given))

    def unused(self, whole: Mapping[str, Any]) -> list[str]:
        """Returns the fields of ``to_dict`` that say nothing, which a plain composition leaves out."""
        return [key for key, default in self.fields.items() if whole.get(key) == default]

    def check(self, config: Any) -> None:
        """Refuses values that this composition cannot have.

        Args:
            config: The ``ComposedConfig``, with every field set.

        Raises:
            ValueError: Naming the field.
        """
