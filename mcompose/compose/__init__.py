"""From sources to a composed checkpoint: opens, decides, checks, writes, records."""

from mcompose.compose.blueprint import Blueprint, draw_blueprint
from mcompose.compose.build import ComposeOptions, ComposeResult, check_output, compose, make_blueprint, output_folder
from mcompose.compose.released_donor import ImportRequest, import_released
from mcompose.compose.sources import SourceSet, open_parts, open_sources

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
    "make_blueprint",
    "open_parts",
    "open_sources",
    "output_folder",
]
