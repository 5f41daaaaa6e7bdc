"""What composed models return when experts, a router or dropped tokens add something to the usual outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

__all__ = ["ADDED_OUTPUTS", "ComposedCausalOutput", "ComposedOutput"]

ADDED_OUTPUTS = ("router_logits", "router_loss", "kept_places", "adapter_figures")
"""Fields that extensions add to what every causal model returns."""


@dataclass
class ComposedOutput(BaseModelOutputWithPast):
    """Hidden states, with what the router said.

    Args:
        router_logits: Modality -> (items, classes).
        router_loss: Sum of the routers' losses.
        kept_places: With dropped tokens: (B, K) places in the row of what is left, -1 where rows are filled up.
        adapter_figures: In training: set -> modality -> entropy of its gates, and share (E,) of each expert.
    """

    router_logits: dict[str, torch.Tensor] | None = None
    router_loss: torch.Tensor | None = None
    kept_places: torch.Tensor | None = None
    adapter_figures: dict[str, dict[str, dict[str, torch.Tensor]]] | None = None


@dataclass
class ComposedCausalOutput(CausalLMOutputWithPast):
    """Logits, with what the router said.

    Args:
        router_logits: Modality -> (items, classes).
        router_loss: Sum of the routers' losses, before its weight; ``loss`` holds it.
        kept_places: With dropped tokens: (B, K) places in the row that the logits belong to, -1 where rows are filled
            up.
        adapter_figures: In training: set -> modality -> entropy of its gates, and share (E,) of each expert.
    """

    router_logits: dict[str, torch.Tensor] | None = None
    router_loss: torch.Tensor | None = None
    kept_places: torch.Tensor | None = None
    adapter_figures: dict[str, dict[str, dict[str, torch.Tensor]]] | None = None
