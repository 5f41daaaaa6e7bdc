"""Copies the code that a composed checkpoint needs beside it, so that a folder saved from anywhere loads anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["copy_own_code"]


def copy_own_code(folder: str | Path) -> list[Path]:
    """Copies the files beside this one into a folder.

    Args:
        folder: The checkpoint; created when it is not there.

    Returns:
        The copies, sorted by name.
    """
    target, home = Path(folder), Path(__file__).parent
    target.mkdir(parents=True, exist_ok=True)
    if target.resolve() == home.resolve():
        return []
    files = sorted(path for path in home.glob("*.py") if path.name != "__init__.py")
    return [Path(shutil.copyfile(path, target / path.name)) for path in files]
