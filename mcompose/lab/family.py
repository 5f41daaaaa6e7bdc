"""A lab family on disk: the paths of its base, donors, tasks and recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.errors import RequestError

__all__ = ["MARKER", "LabFamily", "open_family", "recipe_text"]

MARKER = "lab.json"
"""File that marks a finished family; written last."""


@dataclass(frozen=True)
class LabFamily:
    """A finished family.

    Args:
        name: Name of the family, such as ``numbers``.
        folder: Folder of the family.
        base: Folder of the base.
        donors: Name -> folder; a donor's name is its modality.
        tasks: Task name -> task file.
        recipe: Recipe that composes all donors by NaiveMC.
        figures: Contents of ``lab.json``: seed, digest, scores that were measured during the making, and versions.
    """

    name: str
    folder: Path
    base: Path
    donors: dict[str, Path]
    tasks: dict[str, Path]
    recipe: Path
    figures: dict[str, Any]


def open_family(folder: Path) -> LabFamily:
    """Reads a finished family.

    Args:
        folder: Folder that ``mcompose lab make`` wrote.

    Returns:
        The family.

    Raises:
        RequestError: The folder does not contain a finished family.
    """
    marker = folder / MARKER
    if not marker.is_file():
        raise RequestError(
            f"{folder} does not contain a finished lab family.", hint=f"Make one: mcompose lab make numbers -o {folder}"
        )
    figures = json.loads(marker.read_text(encoding="utf-8"))
    return LabFamily(
        name=figures["family"],
        folder=folder,
        base=folder / "base",
        donors={name: folder / name for name in figures["donors"]},
        tasks={name: folder / "data" / f"{name}.jsonl" for name in figures["tasks"]},
        recipe=folder / "recipe.yaml",
        figures=figures,
    )


def recipe_text(donors: list[str], *, family: str = "numbers") -> str:
    """Returns the recipe that composes all donors by NaiveMC.

    Args:
        donors: Names of the donors; each is a modality and a folder beside the recipe.
        family: Name of the family.

    Returns:
        YAML of schema 1; paths are relative to the recipe.
    """
    lines = ["schema: 1", f"name: {family}-naivemc", "base: local:base", "sources:"]
    for name in donors:
        lines += [f"  - name: {name}", f"    model: local:{name}", f"    modalities: [{name}]"]
    lines += ["merge:", "  method: naivemc", "  dtype: float32", "  seed: 0", "output:", "  dir: build/naivemc"]
    return "\n".join(lines) + "\n"
