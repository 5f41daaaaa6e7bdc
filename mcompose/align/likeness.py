"""Whether an encoder treats its items apart from each other: only then may each one's features be kept alone."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["MIXES_ITEMS", "same_features"]

MIXES_ITEMS: Final = "its encoder does not treat items apart from each other"
"""Why features of such an encoder are not kept."""
_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUGH: Final = 2e-2  # of half precision


def same_features(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether features are the same but for rounding.

    Args:
        found: Features of items that were encoded alone, joined.
        wanted: Of the same items encoded together; its type and largest value decide how much rounding is.
    """
    if found.shape != wanted.shape:
        return False
    limit = _TOLERANCE.get(wanted.dtype, _ROUGH) * float(wanted.abs().max())
    return float((wanted - found).abs().max()) <= limit
