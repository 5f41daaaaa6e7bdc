"""Names and checks of cached features: the item's bytes, what its encoder depends on, and that items do not mix.

Features of one item may be cached alone only where an encoder treats its items apart from each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import torch
import xxhash

from mcompose.align.tensor_file import raw_bytes

__all__ = ["MIXES_ITEMS", "encoder_identity", "feature_key", "features_match"]

MIXES_ITEMS: Final = "its encoder does not treat items apart from each other"
"""Why features of such an encoder are not kept."""
_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUGH: Final = 2e-2  # of half precision
_PARTS: Final = ("image_processor", "feature_extractor", "video_processor")


def encoder_identity(settings: object, processor: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns what features depend on beside the item's own bytes.

    Args:
        settings: Settings of the encoder and of how its output is read; anything that JSON or ``str`` can write.
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
    """Returns the key of an item's kept features.

    Args:
        content: Digest of the item's bytes.
        identity: The encoder's, as :func:`encoder_identity` makes it.
    """
    return xxhash.xxh3_128(content + identity.encode()).hexdigest()


def _text(settings: object) -> bytes:
    return json.dumps(settings, sort_keys=True, default=str).encode()


def features_match(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether features are the same but for rounding.

    Args:
        found: Features of items that were encoded alone, joined.
        wanted: Wanted of the same items encoded together; its type and largest value decide how much rounding is.
    """
    if found.shape != wanted.shape:
        return False
    limit = _TOLERANCE.get(wanted.dtype, _ROUGH) * float(wanted.abs().max())
    return float((wanted - found).abs().max()) <= limit
