"""Media in the dtype of the weights that read them.

Processors give float32, and not every network casts: one in 16 bits then ends in torch's own error. What counts time is
left alone, because positions are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..families import family_of

__all__ = ["in_weights_dtype", "weights_dtype"]

_KEPT = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")


def weights_dtype(model: Any) -> torch.dtype | None:
    """Returns the dtype of a network's first weight, apart from those that its class keeps in float32.

    Args:
        model: A tower or a whole model.

    Returns:
        The dtype; None for a network without floating weights.
    """
    kept = {name for attribute in _KEPT for name in getattr(model, attribute, None) or ()}
    first = None
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point():
            first = first or tensor.dtype
            if kept.isdisjoint(name.split(".")):
                return tensor.dtype
    return first


def in_weights_dtype(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Casts floating inputs to the dtype of a network's weights; whole numbers and masks stay as they are.

    Args:
        model: A tower or a native model, whose configuration names its model type.
        inputs: Processor outputs by native name.
    """
    dtype = weights_dtype(model)
    mrope = family_of(model.config.model_type).mrope
    seconds = None if mrope is None else mrope.seconds
    return {
        name: value.to(dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name != seconds
        else value
        for name, value in inputs.items()
    }
