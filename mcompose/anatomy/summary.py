"""An anatomy in numbers: what ``mcompose inspect`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mcompose.anatomy.part import PARTS, Anatomy

__all__ = ["summarise"]


def summarise(anatomy: Anatomy, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> dict[str, Any]:
    """Counts a checkpoint's parts.

    Args:
        anatomy: Its anatomy.
        shapes: Key to shape.
        dtypes: Key to safetensors dtype.

    Returns:
        Plain values for JSON: the anatomy's own fields, ``parameters`` in total, and per part that occurs the number of
        tensors and parameters, the dtypes with their parameters, and the number of layers. A refused checkpoint may
        have no parts; its parameters are counted all the same.
    """
    named = dict.fromkeys([*PARTS, *(slot.part for slot in anatomy.slots.values())])
    parts = {part: _part(anatomy, part, shapes, dtypes) for part in named}
    text = anatomy.text_config
    return {
        "model_type": anatomy.model_type,
        "architecture": anatomy.architecture,
        "known": anatomy.known,
        "refusal": anatomy.refusal,
        "warnings": list(anatomy.warnings),
        "modalities": list(anatomy.modalities),
        "placeholders": dict(anatomy.placeholders),
        "tied": anatomy.tied,
        "language": {
            "model_type": text.get("model_type", ""),
            "layers": anatomy.num_layers,
            "hidden_size": text.get("hidden_size"),
            "vocab_size": text.get("vocab_size"),
        },
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "parts": {part: numbers for part, numbers in parts.items() if numbers["tensors"]},
    }


def _part(
    anatomy: Anatomy, part: str, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> dict[str, Any]:
    slots = [slot for slot in anatomy.slots.values() if slot.part == part]
    per_dtype: dict[str, int] = {}
    for slot in slots:
        dtype = dtypes[slot.key]
        per_dtype[dtype] = per_dtype.get(dtype, 0) + math.prod(shapes[slot.key])
    layers = [slot.layer for slot in slots if slot.layer is not None]
    return {
        "tensors": len(slots),
        "parameters": sum(per_dtype.values()),
        "dtypes": dict(sorted(per_dtype.items())),
        "layers": max(layers, default=-1) + 1,
    }
