"""Opens the folder of a lab family, or makes it under a temporary name and renames it when it is finished.

An unfinished family never looks finished, and a folder with any other contents is never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcompose.checkpoint import whole_folder
from mcompose.errors import OutputError
from mcompose.lab.family import MARKER, LabFamily, open_family
from mcompose.whole_files import write_json

__all__ = ["find_family", "make_family"]


def find_family(folder: Path, *, digest: str, seed: int) -> LabFamily | None:
    """Opens the family in a folder, if it has the requested seed and settings.

    Args:
        folder: Folder of the family, or where it will be made.
        digest: Digest of seed and settings.
        seed: Requested seed, for the error's text.

    Returns:
        The family; None when the folder is empty or does not exist.

    Raises:
        OutputError: The folder contains something else, or a family of another seed or other settings.
    """
    if (folder / MARKER).is_file():
        family = open_family(folder)
        if family.figures.get("digest") != digest:
            raise OutputError(
                f"'{folder}' contains a lab family of another kind, seed or settings "
                f"({family.name}, seed {family.figures.get('seed')}; requested: seed {seed}).",
                hint="Choose another folder, or remove this one.",
            )
        return family
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"'{folder}' contains files that are not a lab family.", hint="Choose another folder.")
    return None


def make_family(
    folder: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    digest: str,
    clock: Callable[[], float] = time.perf_counter,
) -> LabFamily:
    """Makes a family in ``<folder>.partial``, and renames that folder when the family is complete.

    Args:
        folder: Folder of the family; it is empty or does not exist.
        build: Function that writes the family into a folder, and returns its figures.
        digest: Digest of seed and settings.
        clock: Function that returns the time in seconds.

    Returns:
        The family.

    Raises:
        OutputError: ``<folder>.partial`` was not written by mcompose, or another run is writing it.
        StorageError: The disk is full or refused a write.
    """
    started = clock()
    with whole_folder(folder) as work:
        figures = build(work)
        figures |= {"digest": digest, "seconds": round(clock() - started, 1)}
        write_json(work / MARKER, figures, indent=2)
    return open_family(folder)
