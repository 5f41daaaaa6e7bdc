"""Where the tokens of a composed batch stand, and which of them see each other.

Letters: B text rows, L tokens, D width of the language model.

Methods of ``ComposedModel`` that do what native base classes do ahead of their language model: positions on the grid of
an image (M-RoPE) or from another start, and attention in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache

from ..families import TYPE_IDS, family_of
from .masks import bidirectional_masks
from .mrope import grids_of, mrope_positions, text_positions
from .native_grids import asks_native, native_items

__all__ = ["ComposedPositions"]


class ComposedPositions:
    """Positions and attention; the attributes come from ``ComposedModel``."""

    config: Any
    mrope: bool
    attention: str
    first_position: int
    get_encoder: Any

    def rope_positions(
        self,
        types_BL: torch.Tensor,
        media: Mapping[str, Mapping[str, Any]],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns M-RoPE positions (3, B, L) of new tokens, and the deltas (B, 1) of what follows them.

        Args:
            types_BL: mm_token_type_ids of the new tokens.
            media: Their media, as ``media_inputs`` gives them.
            attention_mask: 2-D mask over earlier and new tokens, or None.
            past_key_values: Cache of the earlier tokens.
        """
        grids = {}
        for modality, inputs in media.items():
            tower = self.get_encoder(modality)
            rule = family_of(tower.config.model_type).mrope
            if modality not in ("image", "video"):
                continue
            if rule is not None:
                grids[modality] = grids_of(tower.config, rule, modality, inputs)
            elif asks_native(tower):
                merge = tower.config.vision_config.spatial_merge_size
                grids[modality] = native_items(tower, modality, TYPE_IDS[modality], inputs, merge)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        new = None if attention_mask is None else attention_mask[:, past:]
        positions_3BL, deltas_B1 = mrope_positions(types_BL, grids, attention_mask=new)
        if not past:
            return positions_3BL, deltas_B1
        before = getattr(past_key_values, "mrope_deltas", 0)
        seen_B1 = past if attention_mask is None else attention_mask[:, :past].sum(-1, keepdim=True)
        return positions_3BL + (seen_B1 + before), deltas_B1 + before

    def _positions(
        self,
        x_BLD: torch.Tensor,
        types_BL: torch.Tensor | None,
        media: Mapping[str, Mapping[str, Any]],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not (self.mrope or self.first_position):
            return None, None
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        rows, length = x_BLD.shape[:2]
        if self.first_position:
            return torch.arange(length, device=x_BLD.device)[None] + past + self.first_position, None
        if media and types_BL is not None:
            return self.rope_positions(types_BL, media, attention_mask, past_key_values)
        deltas = getattr(past_key_values, "mrope_deltas", None)
        if deltas is None:
            return None, None
        plain = text_positions(attention_mask, rows=rows, length=past + length, device=x_BLD.device)[:, -length:]
        repeated = deltas.repeat_interleave(rows // len(deltas), dim=0)
        return (plain + repeated).expand(3, -1, -1), deltas

    def _two_way(
        self,
        x_BLD: torch.Tensor,
        types_BL: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None,
    ) -> Any:
        if self.attention == "causal":
            return attention_mask
        ready = isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() == 4)
        started = past_key_values is not None and past_key_values.is_initialized
        if ready or (self.attention == "prefix" and started):
            return attention_mask
        if token_type_ids is None:
            if types_BL is None:
                return attention_mask
            token_type_ids = torch.zeros_like(types_BL) if self.attention == "prefix" else types_BL
        return bidirectional_masks(
            self.attention,
            token_type_ids,
            config=self.config.text_config,
            inputs_embeds=x_BLD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
