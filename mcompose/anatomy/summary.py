"""Summary of an anatomy in numbers, as ``mcompose inspect`` prints it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mcompose.anatomy.part import PARTS, Anatomy

__all__ = ["summarise"]


def summarise(anatomy: Anatomy, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> dict[str, Any]:
    """Counts the tensors and parameters of a checkpoint's parts.

    Args:
        anatomy: Anatomy of the checkpoint.
        shapes: Key to shape.
        dtypes: Key to safetensors dtype.

    Returns:
        Plain values for JSON: the anatomy's fields, ``parameters`` in total, and for each part that occurs the numbers
        of tensors, parameters, parameters by dtype, and layers. A refused checkpoint may not have parts; its parameters
        are counted anyway.
    """
    names = dict.fromkeys([*PARTS, *(slot.part for slot in anatomy.slots.values())])
    parts = {part: _part(anatomy, part, shapes, dtypes) for part in names}
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
