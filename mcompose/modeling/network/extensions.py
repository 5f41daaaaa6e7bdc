"""The extensions of the composed network, in the order in which their hooks are called."""

from __future__ import annotations

from ..adapters.extension import AdapterExtension
from ..experts.extension import ExpertExtension
from ..groups.extension import GroupExtension
from ..prefixes.extension import PrefixExtension
from .extension import Extension

__all__ = ["EXTENSIONS"]

EXTENSIONS: tuple[Extension, ...] = (
    ExpertExtension(),
    PrefixExtension(),
    GroupExtension(),
    AdapterExtension(),
)
