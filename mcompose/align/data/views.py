"""Counts the tokens of pictures that are cut into views, before anything is trained or even decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcompose.errors import RequestError
from mcompose.media import picture_size
from mcompose.modeling import VISION_MIX_TYPE

__all__ = ["check_views", "picture_alignment"]


def check_views(mixture: Any, processor: Any, *, max_length: int | None) -> None:
    """Refuses data with pictures that alone are longer than the limit; of each picture only the header is read.

    Args:
        mixture: The data of a stage; a stream is not read ahead.
        processor: The checkpoint's.
        max_length: Most tokens of a sample; None for any.

    Raises:
        RequestError: Naming the longest picture.
    """
    served = getattr(processor, "served_by", None)
    images: Any = processor.processors.get(served("image")) if served is not None else None
    if max_length is None or not hasattr(images, "count") or not hasattr(mixture, "__len__"):
        return
    if images.most_tokens < max_length:
        return
    longest, place, size = 0, "", (0, 0)
    for sample in mixture.samples():
        if sample.on_long == "skip":
            continue
        for item in sample.media().get("image", ()):
            found = picture_size(item)
            count = images.count(*found)
            if count > longest:
                longest, place, size = count, sample.place, found
    if longest >= max_length:
        raise RequestError(
            f"{place}: its picture of {size[0]} x {size[1]} pixels becomes {longest:,} tokens, and 'max_length' is "
            f"{max_length:,}; it is the longest of the data.",
            hint=f"Raise 'max_length' above {longest:,}, allow fewer tiles in 'compose.vision_mix.views', or set "
            "'on_long: skip' for this dataset.",
        )


def picture_alignment(config: Mapping[str, Any]) -> str | None:
    """Returns where a checkpoint's mixed encoders put a picture in its padded square.

    Args:
        config: The checkpoint's config.

    Returns:
        ``center`` or ``corner``; None where it has no mixed encoders, or they do not pad pictures.
    """
    for value in config.values():
        if not isinstance(value, Mapping):
            continue
        views = value.get("views") if value.get("model_type") == VISION_MIX_TYPE else None
        if isinstance(views, Mapping):
            return str(views.get("align", "center")) if views.get("padding", "square") == "square" else None
        if (found := picture_alignment(value)) is not None:
            return found
    return None
