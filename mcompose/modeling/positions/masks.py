"""Attention masks of families whose media, or whole prompt, see both ways.

Gemma 3 lets the tokens of one image see each other; PaliGemma lets the whole prompt do so. Both are a causal mask with
blocks: tokens with the same block id, when it is not -1, see each other. The masks are built by transformers' own
functions, so they are the native ones.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import (
    create_causal_mask,
    create_masks_for_generate,
    create_sliding_window_causal_mask,
)
from transformers.models.gemma3.modeling_gemma3 import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

__all__ = ["bidirectional_masks"]


def bidirectional_masks(kind: str, types_BL: torch.Tensor, *, config: PreTrainedConfig, **mask_inputs: Any) -> Any:
    """Returns what the language model takes as ``attention_mask``.

    Args:
        kind: "image_blocks" (types: 1 on image tokens) or "prefix" (types: 0 on the prompt).
        types_BL: Token types (B, L) of the tokens that are being run.
        config: The language model's configuration.
        **mask_inputs: ``inputs_embeds``, ``attention_mask``, ``past_key_values``, ``position_ids``.
    """
    if kind == "image_blocks":
        blocks = get_block_sequence_ids_for_mask(types_BL, device=mask_inputs["inputs_embeds"].device)
        return create_masks_for_vision_model(config=config, block_sequence_ids=blocks, **mask_inputs)
    blocks = torch.where(types_BL == 0, 0, -1)
    mask_inputs = {"config": config, "block_sequence_ids": blocks, **mask_inputs}
    if hasattr(config, "layer_types"):
        return create_masks_for_generate(**mask_inputs)
    full = create_causal_mask(**mask_inputs)
    if getattr(config, "sliding_window", None) is None:
        return full
    return {"full_attention": full, "sliding_attention": create_sliding_window_causal_mask(**mask_inputs)}
