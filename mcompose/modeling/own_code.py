"""Writes the code that a composed checkpoint needs beside it, so that a folder saved from anywhere loads anywhere."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

__all__ = ["copy_own_code"]


def copy_own_code(folder: str | Path) -> list[Path]:
    """Writes the code of composed checkpoints into a folder.

    The installed package generates it; code that was itself loaded from a checkpoint copies the files beside it.

    Args:
        folder: The checkpoint; created when it is not there.

    Returns:
        The written files, sorted by name.
    """
    if __name__.endswith(".own_code"):  # a file of its own only in the package, a section of a file in a checkpoint
        return importlib.import_module(".bundle", __package__).write_files(folder)
    target, home = Path(folder), Path(__file__).parent
    target.mkdir(parents=True, exist_ok=True)
    if target.resolve() == home.resolve():
        return []
    files = sorted(path for path in home.glob("*.py") if path.name != "__init__.py")
    return [Path(shutil.copyfile(path, target / path.name)) for path in files]
