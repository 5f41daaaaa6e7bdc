"""Sources to a composed checkpoint: opens them, decides, checks, writes, records.

::

    sources, build               opens the sources of a recipe; the whole run from recipe to folder
    blueprint                    what the output will be, from headers alone
    towers, vocabulary           encoders and projectors; rows of the token tables
    extension, extensions        what an output may have beside these: hooks, and the list of all extensions
    decoupled, groups, stacked   DAMC's parameter groups
    prefixes                     learned vectors around media items
    experts/                     Chimera's domain experts
    native, composed             the files of each format, but for the weights
    provenance                   recipes, lock file and ledger
    released, released_donor     donors that Model Composition released
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.compose.blueprint import Blueprint, draw_blueprint
from mcompose.compose.build import (
    ComposeOptions,
    ComposeResult,
    check_output,
    compose,
    compose_part,
    make_blueprint,
    output_folder,
)
from mcompose.compose.composed import check_composed, tower_entries
from mcompose.compose.proven import PROVEN_FILE, how_it_composes
from mcompose.compose.released_donor import ImportRequest, import_released
from mcompose.compose.sources import SourceSet, open_parts, open_sources
from mcompose.doors import lazy_names

if TYPE_CHECKING:
    from mcompose.compose.provenance import library_versions, lock_text

__all__ = [
    "PROVEN_FILE",
    "Blueprint",
    "ComposeOptions",
    "ComposeResult",
    "ImportRequest",
    "SourceSet",
    "check_composed",
    "check_output",
    "compose",
    "compose_part",
    "draw_blueprint",
    "how_it_composes",
    "import_released",
    "library_versions",
    "lock_text",
    "make_blueprint",
    "open_parts",
    "open_sources",
    "output_folder",
    "tower_entries",
]

_HOME = {
    "library_versions": "provenance",
    "lock_text": "provenance",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
