"""Keys of cached features, from the item's bytes and its encoder, and a check that items do not affect each other.

Features of an item can be cached alone only if the encoder treats the items of a batch independently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import torch
import xxhash

from mcompose.align.tensor_file import raw_bytes

__all__ = ["MIXES_ITEMS", "encoder_identity", "feature_key", "features_match"]

MIXES_ITEMS: Final = "its encoder does not treat items independently"
"""Reason why features of such an encoder are not cached."""
_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUGH: Final = 2e-2  # of half precision
_PARTS: Final = ("image_processor", "feature_extractor", "video_processor")


def encoder_identity(settings: object, processor: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Digests everything that features depend on besides the item's own bytes.

    Args:
        settings: Settings of the encoder and of how its output is read; anything that JSON or ``str`` can write.
        processor: What prepares its items, with the settings of its parts; None for nothing.
        weights: Names and tensors, in the encoder's order.

    Returns:
        A digest.
    """
    digest = xxhash.xxh3_128()
    digest.update(_text(settings))
    inner = getattr(processor, "natives", {}).values()  # of a mix of encoders
    for part in [processor, *(getattr(processor, name, None) for name in _PARTS), *inner]:
        digest.update(_text(part.to_dict() if hasattr(part, "to_dict") else {}))
    for name, tensor in weights:
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def feature_key(content: bytes, identity: str) -> str:
    """Makes the key of an item's cached features.

    Args:
        content: Digest of the item's bytes.
        identity: The encoder's, as :func:`encoder_identity` makes it.
    """
    return xxhash.xxh3_128(content + identity.encode()).hexdigest()


def _text(settings: object) -> bytes:
    return json.dumps(settings, sort_keys=True, default=str).encode()


def features_match(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Returns whether features are equal up to rounding.

    Args:
        found: Features of items that were encoded one by one, joined.
        wanted: Features of the same items encoded together; their dtype and largest value set the tolerance.
    """
    if found.shape != wanted.shape:
        return False
    limit = _TOLERANCE.get(wanted.dtype, _ROUGH) * float(wanted.abs().max())
    return float((wanted - found).abs().max()) <= limit
