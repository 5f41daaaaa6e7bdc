"""The family ``smol``: objects of Sweet Home 3D's libraries, their icons, and clouds sampled from their meshes.

A library (``.sh3f``) is a zip file with a catalogue in Java's properties format, and an icon and an OBJ file per
object. An object's kind is read from the last words of its English name. Objects with equal names are different meshes.
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
        name: Name in the catalogue.
        kind: One of ``KINDS``.
        icon: Rendered picture on white, uint8 (128, 128, 3).
        cloud: Points on its surface, float32 (``SURFACE_POINTS``, 3), around the centre of its bounding box. Lengths
            are metres divided by the square root of the object's size, so that both form and size are visible.
    """

    name: str
    kind: str
    icon: np.ndarray
    cloud: np.ndarray


def kind_of(name: str) -> str | None:
    """Reads the kind from an object's English name.

    Args:
        name: Name such as ``Winchester sofa``.

    Returns:
        One of ``KINDS``; None for anything else.
    """
    plain = " ".join(re.findall(r"[a-z]+", name.lower()))
    return next((kind for kind in KINDS if re.search(_NAMED[kind], plain)), None)


def read_things(folder: Path, *, generator: np.random.Generator) -> list[Thing]:
    """Reads all objects whose kind is known.

    Args:
        folder: Folder with the libraries.
        generator: Source of randomness that chooses points on the surfaces.

    Returns:
        The objects, in the order of the libraries and of their catalogues.

    Raises:
        StorageError: A library does not contain a file that its catalogue names.
    """
    things = []
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
                    raise StorageError(f"{path}: '{entry['name']}' does not match the catalogue ({error}).") from error
                cloud = sample_surface(*read_mesh(mesh.decode("latin-1")), generator=generator)
                things.append(Thing(entry["name"], kind, _icon(icon), cloud * np.float32(np.sqrt(size))))
    return things


def _catalogue(library: zipfile.ZipFile) -> list[dict[str, str]]:
    """Reads properties ``key#number=value`` into one dictionary per number."""
    text = library.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        name, numbered, number = key.strip().partition("#")
        if separator and numbered and number.isdigit():
            entries.setdefault(int(number), {})[name] = value.strip()
    return [entries[number] for number in sorted(entries) if "name" in entries[number]]


def _icon(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB").resize((_ICON_SIDE, _ICON_SIDE), Image.Resampling.BICUBIC))


def read_mesh(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads vertices and triangles of a Wavefront OBJ file.

    Args:
        text: Contents of the file; faces of more than three corners are split, negative indices are allowed.

    Returns:
        float64 (corners, 3) and int64 (triangles, 3).

    Raises:
        StorageError: The file does not contain a face.
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
    """Samples points evenly from the surface of a mesh.

    Args:
        corners: Coordinates of the vertices, (corners, 3).
        triangles: Indices of their vertices, (triangles, 3).
        generator: Source of randomness.
        count: Number of points.

    Returns:
        float32 (count, 3), around the centre of their bounding box, whose longest side has length 2.
    """
    places = corners[triangles]
    areas = np.linalg.norm(np.cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]), axis=1)
    chosen = places[generator.choice(len(triangles), size=count, p=areas / areas.sum())]
    along, across = np.sqrt(generator.random((count, 1))), generator.random((count, 1))
    points = chosen[:, 0] * (1 - along) + chosen[:, 1] * along * (1 - across) + chosen[:, 2] * along * across
    low, high = corners[np.unique(triangles)].min(axis=0), corners[np.unique(triangles)].max(axis=0)
    return ((points - (low + high) / 2) * (2 / max((high - low).max(), 1e-9))).astype(np.float32)
