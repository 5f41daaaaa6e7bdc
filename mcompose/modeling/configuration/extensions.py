"""The extensions of a composition, as configurations know them, in the order in which they are checked."""

from __future__ import annotations

from ..adapters.configuration import AdapterFields
from ..experts.configuration import ExpertFields
from ..groups.specs import GroupFields
from ..prefixes.configuration import PrefixFields
from .extension import ConfigExtension

__all__ = ["CONFIG_EXTENSIONS"]

CONFIG_EXTENSIONS: tuple[ConfigExtension, ...] = (GroupFields(), PrefixFields(), ExpertFields(), AdapterFields())
