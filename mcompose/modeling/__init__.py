"""The composed network and its processor: a self-contained island that travels with every composed checkpoint.

Its files need torch and transformers only, and import each other relatively. ``configuration/`` says what a composition
is, ``network/`` runs it, ``processing/`` prepares its text and media; ``towers/``, ``positions/``, ``groups/`` and
``experts/`` are parts of these, and ``points/`` is a small model of point clouds. A checkpoint gets at most six
files that ``bundle.py`` generates from them (``generate_files``); there they load by ``trust_remote_code``. With
mcompose installed, ``register()`` makes transformers' Auto classes know the classes, and no flag is needed.

Importing this package imports neither torch nor transformers; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import generate_files
    from .configuration.composed import AUTO_MAP, ComposedConfig, composed_config, stored_source
    from .experts.configuration import DOMAIN_TOKENS, SLOT_TOKEN, expert_token
    from .experts.expert import first_values
    from .experts.hidden_tokens import add_mask_token
    from .groups.editing import add_groups, fold_text, group_parameters
    from .groups.specs import GroupSpec, base_key, group_keys, group_specs
    from .network.composed import ComposedForConditionalGeneration, ComposedModel
    from .prefixes.network import add_prefixes
    from .prefixes.tokens import prefix_fields
    from .processing.composed import (
        ComposedProcessor,
        add_placeholders,
        build_processor,
        structure_ids,
        write_processor,
    )

__all__ = [
    "AUTO_MAP",
    "DOMAIN_TOKENS",
    "SLOT_TOKEN",
    "ComposedConfig",
    "ComposedForConditionalGeneration",
    "ComposedModel",
    "ComposedProcessor",
    "GroupSpec",
    "add_groups",
    "add_mask_token",
    "add_placeholders",
    "add_prefixes",
    "base_key",
    "build_processor",
    "composed_config",
    "expert_token",
    "first_values",
    "fold_text",
    "generate_files",
    "group_keys",
    "group_parameters",
    "group_specs",
    "prefix_fields",
    "register",
    "stored_source",
    "structure_ids",
    "write_processor",
]

_HOME = {
    "generate_files": "bundle",
    "AUTO_MAP": "configuration.composed",
    "ComposedConfig": "configuration.composed",
    "composed_config": "configuration.composed",
    "stored_source": "configuration.composed",
    "DOMAIN_TOKENS": "experts.configuration",
    "SLOT_TOKEN": "experts.configuration",
    "expert_token": "experts.configuration",
    "first_values": "experts.expert",
    "add_mask_token": "experts.hidden_tokens",
    "ComposedForConditionalGeneration": "network.composed",
    "ComposedModel": "network.composed",
    "add_prefixes": "prefixes.network",
    "prefix_fields": "prefixes.tokens",
    "add_groups": "groups.editing",
    "fold_text": "groups.editing",
    "group_parameters": "groups.editing",
    "GroupSpec": "groups.specs",
    "base_key": "groups.specs",
    "group_keys": "groups.specs",
    "group_specs": "groups.specs",
    "ComposedProcessor": "processing.composed",
    "add_placeholders": "processing.composed",
    "build_processor": "processing.composed",
    "structure_ids": "processing.composed",
    "write_processor": "processing.composed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Lazy, because torch and transformers take seconds to import.
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def register() -> None:
    """Makes transformers' Auto classes load composed checkpoints from here; may be called again."""
    importlib.import_module(f"{__name__}.registration").register()
