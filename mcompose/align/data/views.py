"""Counts the tokens of pictures that are cut into views, before anything is trained or even decoded."""

from __future__ import annotations

from typing import Any

from mcompose.errors import RequestError
from mcompose.media import picture_size

__all__ = ["check_views"]


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
