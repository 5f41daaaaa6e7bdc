"""Reads what a caller passed as media into a flat list of items, in order: one item, a list, or a list per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from typing import Any

from PIL import Image

__all__ = ["media_items"]


def media_items(modality: str, value: Any) -> list[Any]:
    """Returns the items of one modality in order.

    Args:
        modality: "image", "video", "audio" or "points".
        value: One item, a list of items, a list of lists (one per prompt), or an array with one more dimension than an
            item has. Items are paths, or: Pillow images and arrays of 2 or 3 dimensions (image); lists of images and
            arrays of 4 dimensions, or of 3 when they are grey (video); arrays of 1 dimension and lists of numbers
            (audio); arrays of 2 dimensions (points).

    Returns:
        The items; paths as strings.

    Raises:
        ValueError: When a value is not an item and holds none.
    """
    if value is None:
        return []
    if isinstance(value, PathLike):
        return [fspath(value)]
    if isinstance(value, str) or _IS_ITEM[modality](value):
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{type(value).__name__} is not something that {modality} items can be read from.")
    return [item for entry in value for item in media_items(modality, entry)]


def _ndim(value: Any) -> int:
    return getattr(value, "ndim", 0)


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or _ndim(value) in (2, 3)


def _is_grey_clip(value: Any) -> bool:
    return _ndim(value) == 3 and not {value.shape[0], value.shape[-1]} & {1, 3}


def _is_video(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_image(frame) and not _is_grey_clip(frame) for frame in value)
    return _ndim(value) == 4 or _is_grey_clip(value)


def _is_sound(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], float | int)
    return _ndim(value) == 1


def _is_cloud(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], list | tuple) and isinstance(value[0][0], float | int)
    return _ndim(value) == 2


_IS_ITEM: dict[str, Callable[[Any], bool]] = {
    "image": _is_image,
    "video": _is_video,
    "audio": _is_sound,
    "points": _is_cloud,
}
