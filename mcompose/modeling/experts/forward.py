"""Experts, routers and hidden tokens as parts of ``ComposedModel``.

Letters: B text rows, L tokens, D width of the language model, W width of a general encoder, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..configuration.composed import ComposedConfig
from ..towers.features import Features
from .expert import Expert, ExpertFeatures
from .hidden_tokens import Kept, check_hiding, kept_tokens
from .places import Extras
from .router import ItemCounts, item_runs, router_loss

__all__ = ["ExpertForward", "Reading"]


@dataclass
class Reading:
    """What the language model is about to read.

    Args:
        x_BLD: Embeddings with everything in place.
        attention_mask: 2-D, ready-made, or None.
        position_ids: (B, L), (3 or 4, B, L) or None.
        types_BL: Token types, where they matter.
        token_type_ids: As the native class takes them.
        origin: Modality -> bool (B, L), for routed linears.
        deepstack: The language model's deepstack arguments.
    """

    x_BLD: torch.Tensor  # noqa: N815 - shape suffix
    attention_mask: Any
    position_ids: torch.Tensor | None
    types_BL: torch.Tensor | None  # noqa: N815 - shape suffix
    token_type_ids: torch.Tensor | None
    origin: dict[str, torch.Tensor]
    deepstack: dict[str, Any]


class ExpertForward:
    """Methods of ``ComposedModel``; its other attributes come from there."""

    config: ComposedConfig
    experts: Any
    routers: Any
    mrope: bool

    def build_experts(self, config: ComposedConfig) -> None:
        """Makes the experts, routers and learned vectors that a configuration names."""
        width = config.text_config.hidden_size
        for name in config.experts:
            if hasattr(nn.ModuleDict, name):
                raise ValueError(f"{name!r} cannot name an expert: torch uses the word itself. Choose another name.")
        self.experts = nn.ModuleDict(
            {
                name: Expert(name, entry, text_width=width, attn_implementation=config._attn_implementation)
                for name, entry in config.experts.items()
            }
        )
        self.routers = nn.ModuleDict(
            {
                modality: nn.Linear(router["width"], len(router["classes"]), bias=False)
                for modality, router in config.routers.items()
            }
        )
        if config.experts:
            self.domain_tokens = nn.Parameter(torch.zeros(2, width))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(width))

    def encode_experts(self, extras: Extras) -> dict[str, ExpertFeatures]:
        """Returns features of the experts that have something to read, made now or earlier."""
        if extras.expert_features is not None:
            return extras.expert_features
        return {name: self.experts[name](inputs) for name, inputs in extras.inputs.items()}

    def items_asked(self, extras: Extras, masks: Mapping[str, torch.Tensor]) -> dict[str, ItemCounts]:
        """Returns what is known of the items whose router is asked in a forward pass: those with labels."""
        asked = {}
        for modality, labels_I in extras.router_labels.items():
            tokens = extras.item_tokens.get(modality)
            runs = item_runs(masks[modality]) if tokens is None and modality in masks else []
            if tokens is None and len(runs) == labels_I.numel():
                tokens = runs
            asked[modality] = ItemCounts(tokens, labels_I.numel())
        return asked

    def ask_router(self, modality: str, features: Features) -> torch.Tensor:
        """Returns what a router says (I, C), in float32.

        Raises:
            ValueError: The features were made without it.
        """
        if features.pooled_IW is None:
            raise ValueError(f"The {modality} features hold nothing for the router; encode_media(..., items=) does.")
        router = self.routers[modality]
        return router(features.pooled_IW.to(router.weight.device, router.weight.dtype)).float()

    def router_outputs(
        self, features: Mapping[str, Features], extras: Extras
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Returns what the routers say of labelled items (0 rows where there are none), and the sum of their losses."""
        logits, losses = {}, []
        for modality, labels_I in extras.router_labels.items():
            router = self.routers[modality]
            asked = self.ask_router(modality, features[modality]) if modality in features else None
            logits[modality] = router(router.weight.new_zeros(0, router.in_features)) if asked is None else asked
            losses.append(
                router_loss(
                    asked,
                    labels_I,
                    weight=router.weight,
                    modality=modality,
                    items_in_batch=extras.router_items_in_batch,
                )
            )
        return logits, torch.stack(losses).sum() if losses else None

    def check_hidden(
        self, extras: Extras, attention_mask: Any, position_ids: torch.Tensor | None, *, cached: bool
    ) -> None:
        """Refuses hidden tokens that cannot be hidden rightly; see :func:`check_hiding`."""
        if extras.hidden is not None:
            check_hiding(
                extras.hidden,
                attention_mask=attention_mask,
                padding_mask=extras.padding_mask,
                text_config=self.config.text_config,
                needs_padding=self.mrope and position_ids is None,
                cached=cached,
            )

    def hide(self, reading: Reading, extras: Extras, unseen_BL: torch.Tensor | None) -> tuple[Reading, Kept | None]:
        """Takes hidden tokens, and experts' padding, from what is read.

        Args:
            reading: What is about to be read.
            extras: How tokens are hidden.
            unseen_BL: Context tokens that stand for padding.

        Returns:
            What is read instead, and the tokens that stayed when others were dropped.
        """
        mask = reading.attention_mask
        if extras.hidden == "learned":
            reading = self._covered(reading, mask, extras)
        if unseen_BL is not None and not (isinstance(reading.attention_mask, dict) or _is_ready(reading)):
            whole = reading.attention_mask
            whole = torch.ones_like(unseen_BL, dtype=torch.long) if whole is None else whole
            reading = replace(reading, attention_mask=whole.masked_fill(unseen_BL.to(whole.device), 0))
        if extras.hidden != "drop":
            return reading, None
        return _dropped(reading, extras.padding_mask)

    def _covered(self, reading: Reading, mask_BL: torch.Tensor, extras: Extras) -> Reading:
        if not self.config.mask_token:
            raise ValueError("This model has no mask_token; call add_mask_token(model) first.")
        padding_BL = extras.padding_mask
        hidden_BL = (mask_BL == 0) & (padding_BL != 0)
        vector_D = self.mask_token.to(reading.x_BLD.dtype)
        deepstack = reading.deepstack
        if deepstack:
            where_BL = deepstack["visual_pos_masks"]
            rows_N1 = hidden_BL.to(where_BL.device)[where_BL][:, None]
            layers = [x_ND.masked_fill(rows_N1.to(x_ND.device), 0) for x_ND in deepstack["deepstack_visual_embeds"]]
            deepstack = {**deepstack, "deepstack_visual_embeds": layers}
        x_BLD = torch.where(hidden_BL.to(reading.x_BLD.device)[..., None], vector_D, reading.x_BLD)
        return replace(reading, x_BLD=x_BLD, attention_mask=padding_BL, deepstack=deepstack)


def _is_ready(reading: Reading) -> bool:
    mask = reading.attention_mask
    return mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2)


def _dropped(reading: Reading, padding_mask: torch.Tensor | None) -> tuple[Reading, Kept]:
    mask_BL = reading.attention_mask
    edge_B = (mask_BL if padding_mask is None else padding_mask)[:, 0]
    kept = kept_tokens(mask_BL, left=bool((edge_B == 0).any()))
    positions = reading.position_ids
    if positions is None:
        positions = torch.arange(mask_BL.shape[1], device=mask_BL.device)[None]
    positions = positions.expand(*positions.shape[:-2], len(mask_BL), -1)
    types, typed = reading.types_BL, reading.token_type_ids
    return Reading(
        x_BLD=kept.vectors(reading.x_BLD),
        attention_mask=kept.real_BK.long(),
        position_ids=kept.values(positions),
        types_BL=None if types is None else kept.values(types),
        token_type_ids=None if typed is None else kept.values(typed),
        origin={modality: kept.values(mask, fill=False) for modality, mask in reading.origin.items()},
        deepstack=kept.deepstack(reading.deepstack),
    ), kept
