"""The composed network and its processor: a flat, self-contained island of files.

The files beside this one need torch and transformers only and import each other as ``from .x import y``: copies of them
travel with every composed checkpoint (``island_files``) and load there by ``trust_remote_code``. With mcompose
installed, ``register()`` makes transformers' Auto classes know them, and no flag is needed.

Importing this package imports neither torch nor transformers; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_experts import DOMAIN_TOKENS, SLOT_TOKEN, expert_token
    from .configuration_mcompose import AUTO_MAP, ComposedConfig, composed_config, stored_source
    from .experts import first_values
    from .hidden_tokens import add_mask_token
    from .media_prefixes import add_prefixes, prefix_fields
    from .modeling_mcompose import ComposedForConditionalGeneration, ComposedModel
    from .processing_mcompose import (
        ComposedProcessor,
        add_placeholders,
        build_processor,
        structure_ids,
        write_processor,
    )
    from .routed_editing import add_groups, fold_text, group_parameters
    from .routed_groups import GroupSpec, base_key, group_keys, group_specs

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
    "group_keys",
    "group_parameters",
    "group_specs",
    "island_files",
    "prefix_fields",
    "register",
    "stored_source",
    "structure_ids",
    "write_processor",
]

_HOME = {
    "AUTO_MAP": "configuration_mcompose",
    "ComposedConfig": "configuration_mcompose",
    "composed_config": "configuration_mcompose",
    "stored_source": "configuration_mcompose",
    "DOMAIN_TOKENS": "configuration_experts",
    "SLOT_TOKEN": "configuration_experts",
    "expert_token": "configuration_experts",
    "first_values": "experts",
    "add_mask_token": "hidden_tokens",
    "ComposedForConditionalGeneration": "modeling_mcompose",
    "ComposedModel": "modeling_mcompose",
    "add_prefixes": "media_prefixes",
    "prefix_fields": "media_prefixes",
    "add_groups": "routed_editing",
    "fold_text": "routed_editing",
    "group_parameters": "routed_editing",
    "GroupSpec": "routed_groups",
    "base_key": "routed_groups",
    "group_keys": "routed_groups",
    "group_specs": "routed_groups",
    "ComposedProcessor": "processing_mcompose",
    "add_placeholders": "processing_mcompose",
    "build_processor": "processing_mcompose",
    "structure_ids": "processing_mcompose",
    "write_processor": "processing_mcompose",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Lazy, because torch and transformers take seconds to import.
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def island_files() -> list[Path]:
    """Returns the files to copy beside a composed checkpoint, sorted by name."""
    return sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != "__init__.py")


def register() -> None:
    """Makes transformers' Auto classes load composed checkpoints from here; may be called again."""
    importlib.import_module(f"{__name__}.registration").register()
