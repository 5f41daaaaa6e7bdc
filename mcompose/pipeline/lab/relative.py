"""Paths in the lab's recipes: relative to the recipe, so that a family can be moved with everything made of it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["local_reference", "relative_path"]


def relative_path(target: Path, recipe: Path) -> str:
    """Spells a path as seen from a recipe's folder.

    Args:
        target: File or folder.
        recipe: File of the recipe, which need not exist yet.
    """
    return os.path.relpath(target.resolve(), recipe.parent.resolve())


def local_reference(folder: Path, recipe: Path) -> str:
    """Spells a checkpoint's folder as a source of a recipe."""
    return f"local:{relative_path(folder, recipe)}"
