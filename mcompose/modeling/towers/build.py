"""Builds the tower of any source: native ones, and those of this package that have no language model to take out."""

from __future__ import annotations

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..families import VISION_MIX_TYPE
from ..vision_mix.network import VisionMixModel
from .native_classes import build_native_tower, set_attention

__all__ = ["build_tower"]


def build_tower(config: PreTrainedConfig, *, attn_implementation: str | None) -> PreTrainedModel:
    """Builds what stands between media and the language model.

    Args:
        config: The source's native configuration, or that of a mix of encoders.
        attn_implementation: The composition's own; a tower that lacks it keeps what it has.
    """
    if config.model_type != VISION_MIX_TYPE:
        return build_native_tower(config, attn_implementation=attn_implementation)
    tower = VisionMixModel._from_config(config, dtype=torch.get_default_dtype())
    set_attention(tower, attn_implementation)
    return tower
