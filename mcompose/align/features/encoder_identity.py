"""Under which name kept features stand: the item's bytes, and all that an encoder makes of them besides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import torch
import xxhash

from mcompose.align.tensor_file import raw_bytes

__all__ = ["encoder_identity", "feature_key"]

_PARTS: Final = ("image_processor", "feature_extractor", "video_processor")


def encoder_identity(settings: object, processor: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """What features depend on beside the item's own bytes.

    Args:
        settings: Of the encoder and of how its output is read; anything that JSON or ``str`` can write.
        processor: What prepares its items, with the settings of its parts; None for nothing.
        weights: Names and tensors, in the encoder's order.

    Returns:
        A digest.
    """
    digest = xxhash.xxh3_128()
    digest.update(_text(settings))
    for part in [processor, *(getattr(processor, name, None) for name in _PARTS)]:
        digest.update(_text(part.to_dict() if hasattr(part, "to_dict") else {}))
    for name, tensor in weights:
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def feature_key(content: bytes, identity: str) -> str:
    """Key of an item's kept features.

    Args:
        content: Digest of the item's bytes.
        identity: The encoder's, as :func:`encoder_identity` makes it.
    """
    return xxhash.xxh3_128(content + identity.encode()).hexdigest()


def _text(settings: object) -> bytes:
    return json.dumps(settings, sort_keys=True, default=str).encode()
