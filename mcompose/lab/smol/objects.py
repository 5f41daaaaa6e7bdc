"""The family ``smol``: objects of Sweet Home 3D's libraries, their icons, and clouds sampled from their meshes.

A library (``.sh3f``) is a zip file with a catalogue in Java's properties format, an icon and an OBJ file per object. An
object's kind follows from the last words of its English name. Objects whose names say the same are different meshes.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mcompose.errors import StorageError
from mcompose.lab.smol.questions import KINDS

__all__ = ["SURFACE_POINTS", "Thing", "kind_of", "read_mesh", "read_things", "sample_surface"]

SURFACE_POINTS: Final = 1024
_ICON_SIDE: Final = 128
_NAMED: Final = {
    "bottle": r"\bbottle$",
    "cabinet": r"\b(cabinet|wardrobe)$",
    "car": r"\b(car|sedan|suv|truck|bus)\b",
    "chair": r"\b(chair|armchair|stool)$",
    "couch": r"\b(sofa|couch)\b",
    "door": r"\bdoor$",
    "lamp": r"\b(lamp|light)$",
    "person": r"\b(male|female|boy|girl)\b",
    "plug": r"\bplug$",
    "table": r"\b(table|desk)$",
    "tree": r"\b(tree|plant)$",
    "window": r"\bwindow\b",
}


@dataclass(frozen=True)
class Thing:
    """One object.

    Args:
        name: In the catalogue.
        kind: One of ``KINDS``.
        icon: Its rendered picture on white, uint8 (128, 128, 3).
        cloud: Points on its surface, float32 (``SURFACE_POINTS``, 3), around the middle of its box. Lengths are metres
            divided by the root of the object's size, so that both form and size can be seen.
    """

    name: str
    kind: str
    icon: np.ndarray
    cloud: np.ndarray


def kind_of(name: str) -> str | None:
    """Returns the kind that an object's English name tells.

    Args:
        name: Such as ``Winchester sofa``.

    Returns:
        One of ``KINDS``; None for anything else.
    """
    plain = " ".join(re.findall(r"[a-z]+", name.lower()))
    return next((kind for kind in KINDS if re.search(_NAMED[kind], plain)), None)


def read_things(folder: Path, *, generator: np.random.Generator) -> list[Thing]:
    """Reads all objects whose kind is known.

    Args:
        folder: Holds the libraries.
        generator: Decides which points of a surface are taken.

    Returns:
        The objects, by library and place in it.

    Raises:
        StorageError: A library lacks what its catalogue names.
    """
    found = []
    for path in sorted(folder.glob("*.sh3f")):
        with zipfile.ZipFile(path) as library:
            for entry in _catalogue(library):
                kind = kind_of(entry["name"])
                if kind is None:
                    continue
                try:
                    icon, mesh = (library.read(entry[key].lstrip("/")) for key in ("icon", "model"))
                    size = max(float(entry[key]) for key in ("width", "depth", "height")) / 100
                except (KeyError, ValueError) as error:
                    raise StorageError(f"{path}: '{entry['name']}' is not as its catalogue says ({error}).") from error
                cloud = sample_surface(*read_mesh(mesh.decode("latin-1")), generator=generator)
                found.append(Thing(entry["name"], kind, _icon(icon), cloud * np.float32(np.sqrt(size))))
    return found


def _catalogue(library: zipfile.ZipFile) -> list[dict[str, str]]:
    """Properties ``key#number=value`` as one dictionary a number."""
    text = library.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        key, found, value = line.partition("=")
        name, numbered, number = key.strip().partition("#")
        if found and numbered and number.isdigit():
            entries.setdefault(int(number), {})[name] = value.strip()
    return [entries[number] for number in sorted(entries) if "name" in entries[number]]


def _icon(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB").resize((_ICON_SIDE, _ICON_SIDE), Image.Resampling.BICUBIC))


def read_mesh(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners and triangles of a Wavefront OBJ file.

    Args:
        text: The file; faces of more than three corners are split, places counted from the end are allowed.

    Returns:
        float64 (corners, 3) and int64 (triangles, 3).

    Raises:
        StorageError: There is no face.
    """
    corners: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            corners.append([float(value) for value in rest.split()[:3]])
        elif kind == "f":
            places = [int(corner.partition("/")[0]) for corner in rest.split()]
            ids = [place - 1 if place > 0 else len(corners) + place for place in places]
            triangles += [(ids[0], ids[k], ids[k + 1]) for k in range(1, len(ids) - 1)]
    if not triangles:
        raise StorageError("A mesh has no faces.")
    return np.array(corners, dtype=np.float64), np.array(triangles, dtype=np.int64)


def sample_surface(
    corners: np.ndarray, triangles: np.ndarray, *, generator: np.random.Generator, count: int = SURFACE_POINTS
) -> np.ndarray:
    """Points spread evenly over a mesh.

    Args:
        corners: (corners, 3).
        triangles: Places of corners, (triangles, 3).
        generator: Source of randomness.
        count: How many points.

    Returns:
        float32 (count, 3), around the middle of their box, the longest side of which has length 2.
    """
    places = corners[triangles]
    areas = np.linalg.norm(np.cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]), axis=1)
    chosen = places[generator.choice(len(triangles), size=count, p=areas / areas.sum())]
    along, across = np.sqrt(generator.random((count, 1))), generator.random((count, 1))
    points = chosen[:, 0] * (1 - along) + chosen[:, 1] * along * (1 - across) + chosen[:, 2] * along * across
    low, high = corners[np.unique(triangles)].min(axis=0), corners[np.unique(triangles)].max(axis=0)
    return ((points - (low + high) / 2) * (2 / max((high - low).max(), 1e-9))).astype(np.float32)
