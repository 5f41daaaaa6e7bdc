"""From sources to a composed checkpoint: opens, decides, checks, writes, records."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mcompose.compose.blueprint import Blueprint, draw_blueprint
from mcompose.compose.build import ComposeOptions, ComposeResult, check_output, compose, make_blueprint, output_folder
from mcompose.compose.released_donor import ImportRequest, import_released
from mcompose.compose.sources import SourceSet, open_parts, open_sources

if TYPE_CHECKING:
    from mcompose.compose.provenance import library_versions, lock_text

__all__ = [
    "Blueprint",
    "ComposeOptions",
    "ComposeResult",
    "ImportRequest",
    "SourceSet",
    "check_output",
    "compose",
    "draw_blueprint",
    "import_released",
    "library_versions",
    "lock_text",
    "make_blueprint",
    "open_parts",
    "open_sources",
    "output_folder",
]

_HOME = {
    "library_versions": "provenance",
    "lock_text": "provenance",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
