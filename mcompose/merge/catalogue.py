"""All merge methods by recipe name: the native ones, and mergekit's with the prefix ``mergekit:``."""

from __future__ import annotations

from mcompose import methods as _native  # noqa: F401 - fills the table.
from mcompose.errors import UnknownNameError, nearest_name
from mcompose.methods import METHODS, Method

__all__ = ["MERGEKIT_PREFIX", "catalogue", "find_method"]

MERGEKIT_PREFIX = "mergekit:"


def find_method(name: str) -> Method:
    """Returns the method of a recipe name.

    Args:
        name: ``ties``, or ``mergekit:sce``; only the latter imports mergekit.

    Raises:
        UnknownNameError: No method has this name; the hint suggests the nearest.
    """
    if name.startswith(MERGEKIT_PREFIX):
        from mcompose.merge.mergekit_bridge import bridge_method  # noqa: PLC0415 - mergekit imports torch.

        return bridge_method(name)
    if name in METHODS:
        return METHODS.get(name)
    hint = nearest_name(name, METHODS.names())
    if not hint.startswith("Did"):
        hint += " Write mergekit's other methods as 'mergekit:<name>'."
    raise UnknownNameError(f"'{name}' is not a known merge method.", hint=hint)


def catalogue(*, with_mergekit: bool = False) -> tuple[str, ...]:
    """Returns the names of all methods.

    Args:
        with_mergekit: Whether to add mergekit's methods; this imports mergekit.
    """
    if not with_mergekit:
        return METHODS.names()
    from mcompose.merge.mergekit_bridge import bridge_names  # noqa: PLC0415 - mergekit imports torch.

    return (*METHODS.names(), *bridge_names())
