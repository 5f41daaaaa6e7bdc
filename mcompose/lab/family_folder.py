"""The folder of a lab family: opened where it is there, or made beside its place and renamed when it is finished.

A half-made family never looks finished, and a folder that holds anything else is never touched.
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
    """Opens the family of a folder, if the very one that is asked for is there.

    Args:
        folder: Where the family is, or is to be made.
        digest: Names seed and settings.
        seed: The seed that is asked for.

    Returns:
        The family; None when the folder is empty or does not exist.

    Raises:
        OutputError: The folder holds something else, or a family of another seed or other settings.
    """
    if (folder / MARKER).is_file():
        family = open_family(folder)
        if family.figures.get("digest") != digest:
            raise OutputError(
                f"'{folder}' holds a lab family of another kind, seed or settings "
                f"({family.name}, seed {family.figures.get('seed')}; asked for seed {seed}).",
                hint="Name another folder, or remove this one.",
            )
        return family
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"'{folder}' holds something that is not a lab family.", hint="Name another folder.")
    return None


def make_family(
    folder: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    digest: str,
    clock: Callable[[], float] = time.perf_counter,
) -> LabFamily:
    """Makes a family in ``<folder>.partial``, and gives it its name when everything is done.

    Args:
        folder: Where the family goes; it is empty or does not exist.
        build: Writes the family into a folder, and returns its figures.
        digest: Names seed and settings.
        clock: What the time that the family took is measured by.

    Returns:
        The family.

    Raises:
        OutputError: ``<folder>.partial`` holds something that is not mcompose's, or another run is writing it.
        StorageError: The disk is full or refused a write.
    """
    started = clock()
    with whole_folder(folder) as work:
        figures = build(work)
        figures |= {"digest": digest, "seconds": round(clock() - started, 1)}
        write_json(work / MARKER, figures, indent=2)
    return open_family(folder)
