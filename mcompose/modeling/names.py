"""Names of sources and experts, as they stand before the names of their inputs ("sees__pixel_values")."""

from __future__ import annotations

import re

__all__ = ["SEPARATOR", "is_plain_name"]

SEPARATOR = "__"
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*[A-Za-z0-9]|[A-Za-z]")


def is_plain_name(name: str) -> bool:
    """Tells whether a name is letters, digits, '-' and single '_', from a letter on."""
    return _PLAIN_NAME.fullmatch(name) is not None and SEPARATOR not in name
