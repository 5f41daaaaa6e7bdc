"""Names of files, folders and model types in outputs, and the folder of the user's cache.

``modeling`` repeats the model types, because it must be importable without mcompose.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = [
    "CARD",
    "COMPOSED_TYPE",
    "FOLDER",
    "LEDGER",
    "LOCK",
    "POINTS_TYPE",
    "PROCESSORS",
    "RECIPE",
    "RESOLVED",
    "VISION_MIX_TYPE",
    "cache_folder",
]

COMPOSED_TYPE: Final = "mcompose"
"""``model_type`` of a composed checkpoint."""
POINTS_TYPE: Final = "mcompose_points"
"""``model_type`` of a points source."""
VISION_MIX_TYPE: Final = "mcompose_vision_mix"
"""``model_type`` of mixed image encoders, inside a composed checkpoint."""

PROCESSORS: Final = "processors"
"""Folder of a composed checkpoint with one folder for each source's and each expert's processor."""

CARD: Final = "README.md"
"""The model card."""

FOLDER: Final = "mcompose"
"""Folder of an output with its recipe and ledger. The paths below are relative to the output."""
RECIPE: Final = f"{FOLDER}/recipe.yaml"
RESOLVED: Final = f"{FOLDER}/resolved.yaml"
LOCK: Final = f"{FOLDER}/lock.json"
LEDGER: Final = f"{FOLDER}/ledger.json"


def cache_folder(kind: str) -> Path:
    """Returns a folder of the user's cache: ``$XDG_CACHE_HOME/mcompose/<kind>``, or the same under ``~/.cache``.

    Args:
        kind: Name of the subfolder: what is cached there.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path("~/.cache").expanduser()) / "mcompose" / kind
