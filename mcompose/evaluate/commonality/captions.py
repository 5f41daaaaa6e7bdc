"""Captioned media: ``{"modality": "audio", "path": "rain.wav", "caption": "rain falls on a roof"}`` per line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcompose.errors import RequestError
from mcompose.evaluate.jsonl_tasks import read_lines
from mcompose.modalities import MODALITIES

__all__ = ["Entity", "read_captions"]

_OTHER_NAMES: Final = {"vision": "image", "point": "points", "pointcloud": "points"}


@dataclass(frozen=True)
class Entity:
    """One medium and what it shows.

    Args:
        modality: One of ``MODALITIES``.
        path: Its file.
        caption: What it shows, in words.
    """

    modality: str
    path: Path
    caption: str


def read_captions(file: Path) -> list[Entity]:
    """Reads captioned media.

    Args:
        file: JSON lines with ``modality``, ``path`` (relative to the file) and ``caption``.

    Returns:
        The entities, in the file's order.

    Raises:
        RequestError: A line lacks something, or its medium is missing; the message has the place.
    """
    if not file.is_file():
        raise RequestError(f"There are no captions at {file}.")
    entities = []
    for number, row in enumerate(read_lines(file, empty="A line has modality, path and caption."), start=1):
        place = f"{file}: entity {number}"
        lacking = [key for key in ("modality", "path", "caption") if not isinstance(row.get(key), str) or not row[key]]
        if lacking:
            raise RequestError(f"{place}: '{lacking[0]}' is missing or no text.")
        modality = _OTHER_NAMES.get(row["modality"], row["modality"])
        if modality not in MODALITIES:
            raise RequestError(f"{place}: '{modality}' is not a modality.", hint=f"Known: {', '.join(MODALITIES)}.")
        path = file.parent / row["path"]
        if not path.is_file():
            raise RequestError(f"{place}: the {modality} {path} is missing.")
        entities.append(Entity(modality, path, row["caption"].strip()))
    return entities
