"""What happens to logits after the head, which each language family does its own way.

A composition holds the bare decoder, so the scaling that the language model's causal class applies to its logits is
applied here, unless the native multimodal class of one of its sources applies none (``Family.head``), since a
composition with one source reproduces that source.
"""

from __future__ import annotations

import torch

from ..configuration.composed import ComposedConfig
from ..families import family_of, text_family_of

__all__ = ["scale_logits"]


def scale_logits(logits: torch.Tensor, config: ComposedConfig) -> torch.Tensor:
    """Returns logits (B, L, V) as the native class would.

    Args:
        logits: What the head gave.
        config: The composition's configuration.
    """
    text = config.text_config
    family = text_family_of(text.model_type)
    if any(family_of(source["model_type"]).head == "plain" for source in config.sources.values()):
        return logits
    if family.multiplied_by is not None:
        return logits * getattr(text, family.multiplied_by)
    if family.divided_by is not None:
        return logits / getattr(text, family.divided_by)
    if family.capped and (cap := getattr(text, "final_logit_softcapping", None)) is not None:
        return torch.tanh(logits / cap) * cap
    return logits
