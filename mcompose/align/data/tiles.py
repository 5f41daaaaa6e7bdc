"""How the general processor of a checkpoint cuts images, set for a stage.

Two kinds of processors can be told a number of tiles: those with ``crop_to_patches`` and ``max_patches`` (InternVL,
GOT-OCR2, Ovis2, Cohere2 Vision) and those with ``max_num_tiles`` (Perception LM). A limit of 1 cuts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcompose.errors import RequestError
from mcompose.recipe import Tiling

__all__ = ["patched_processor", "set_tiles", "tile_size"]

_FILES = ("preprocessor_config.json", "processor_config.json")


def set_tiles(processor: Any, tiling: Tiling) -> None:
    """Sets the limit of tiles of every part of a processor that cuts images.

    Args:
        processor: A checkpoint's, composed or not; changed in place.
        tiling: What the recipe says.

    Raises:
        RequestError: No part of it can be told a number of tiles.
    """
    found = [(images, _knobs(images, tiling.limit)) for images in _image_processors(processor)]
    for images, knobs in found:
        for name, value in knobs.items():
            setattr(images, name, value)
    if not any(knobs for _, knobs in found) and not tiling.optional:
        raise RequestError(
            "'tiles' cannot be set: the image processor of this checkpoint has no limit of tiles.",
            hint="Leave 'tiles' out; 'optional: true' lets such processors be.",
        )


def tile_size(processor: Any, *, source: str | None) -> int | None:
    """Tokens of one tile, where tiles of an image stand in one run; None elsewhere.

    Args:
        processor: A checkpoint's.
        source: Whose images; None for a processor that is not composed.
    """
    inner = processor if source is None else processor.processors.get(source)
    images = getattr(inner, "image_processor", None)
    size = getattr(inner, "image_seq_length", None)
    return int(size) if size and images is not None and _knobs(images, 1) else None


def patched_processor(path: Path, limit: int) -> str | None:
    """Returns a processor's file with another limit of tiles.

    Args:
        path: ``preprocessor_config.json`` or ``processor_config.json``.
        limit: Most tiles.

    Returns:
        Its text; None when the file has no such limit.
    """
    if path.name not in _FILES:
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    inner = table.get("image_processor", table)
    knobs = _settings(inner, limit)
    if not knobs:
        return None
    inner.update(knobs)
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def _image_processors(processor: Any) -> list[Any]:
    parts = [processor, *getattr(processor, "processors", {}).values()]
    return [part.image_processor for part in parts if getattr(part, "image_processor", None) is not None]


def _knobs(images: Any, limit: int) -> dict[str, Any]:
    names = ("crop_to_patches", "max_patches", "min_patches", "max_num_tiles")
    return _settings({name: getattr(images, name) for name in names if hasattr(images, name)}, limit)


def _settings(table: Mapping[str, Any], limit: int) -> dict[str, Any]:
    if "crop_to_patches" in table and "max_patches" in table:
        least = min(int(table.get("min_patches") or 1), limit)
        return {"crop_to_patches": limit > 1, "max_patches": limit, "min_patches": least}
    return {"max_num_tiles": limit} if "max_num_tiles" in table else {}
