"""Experts, routers and hidden tokens as an extension of the composed network.

Letters: B text rows, L tokens, D width of the language model, W width of a general encoder, I items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..network.extension import Extension
from ..network.forward_pass import ForwardPass, Reading
from ..towers.features import Features
from .expert import Expert, ExpertFeatures
from .hidden_tokens import Kept, check_hiding, kept_tokens, learnable
from .places import (
    EXTRA_NAMES,
    ITEM_TOKENS,
    Extras,
    expand_expert,
    expert_input_names,
    expert_masks,
    expert_names,
    own_ids,
    place_blocks,
    take_extras,
    unseen,
)
from .references import attach_graphs, fetch_encoders, referenced, referenced_keys, save_graphs
from .router import ItemCounts, item_runs, router_loss

__all__ = ["ExpertExtension", "ExpertMethods"]

_OWN = "experts"


@dataclass
class _ExpertPass:
    """What the experts keep during one forward pass.

    Args:
        extras: Their arguments.
        features: Expert -> what it made of its items.
        outputs: Fields of ``ComposedOutput``.
    """

    extras: Extras
    features: dict[str, ExpertFeatures] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


class ExpertMethods:
    """Methods of ``ComposedModel`` that belong to its experts."""

    experts: Any
    routers: Any

    def encode_experts(self, extras: Extras) -> dict[str, ExpertFeatures]:
        """Returns features of the experts that have something to read, made now or earlier."""
        if extras.expert_features is not None:
            return extras.expert_features
        return {name: self.experts[name](inputs) for name, inputs in extras.inputs.items()}

    def ask_router(self, modality: str, features: Features) -> torch.Tensor:
        """Returns what a router says (I, C), in float32.

        Raises:
            ValueError: The features were made without it.
        """
        if features.pooled_IW is None:
            raise ValueError(f"The {modality} features hold nothing for the router; encode_media(..., items=) does.")
        router = self.routers[modality]
        return router(features.pooled_IW.to(router.weight.device, router.weight.dtype)).float()


class ExpertExtension(Extension):
    """Places what experts saw behind an item's own tokens, trains routers, and hides tokens in training."""

    def build(self, model: Any, config: Any) -> None:
        """Makes the experts, routers and learned vectors that a configuration names."""
        width = config.text_config.hidden_size
        for name in config.experts:
            if hasattr(nn.ModuleDict, name):
                raise ValueError(f"{name!r} cannot name an expert: torch uses the word itself. Choose another name.")
        model.experts = nn.ModuleDict(
            {
                name: Expert(name, entry, text_width=width, attn_implementation=config._attn_implementation)
                for name, entry in config.experts.items()
            }
        )
        model.routers = nn.ModuleDict(
            {
                modality: nn.Linear(router["width"], len(router["classes"]), bias=False)
                for modality, router in config.routers.items()
            }
        )
        if config.experts:
            model.domain_tokens = nn.Parameter(torch.zeros(2, width))
        if config.mask_token:
            model.mask_token = nn.Parameter(torch.zeros(width))

    def inner_models(self, model: Any) -> list[Any]:
        """Returns the experts' encoders."""
        return [expert.encoder for expert in model.experts.values()]

    def absent_keys(self, config: Any) -> list[str]:
        """Returns patterns of the encoders that a checkpoint only refers to."""
        return [rf"experts\.{name}\.encoder\." for name in referenced(config)]

    def unsaved_keys(self, model: Any) -> list[str]:
        """Returns the tensors of these encoders."""
        return referenced_keys(model, model.config)

    def save(self, model: Any, folder: Any) -> None:
        """Writes the files of ONNX encoders."""
        save_graphs(model, folder)

    def load(self, model: Any, where: Any, **kwargs: Any) -> None:
        """Fetches encoders that the checkpoint only refers to, opens ONNX files, and freezes all experts."""
        fetch_encoders(model)
        attach_graphs(model, where, **kwargs)
        for expert in model.experts.values():
            expert.freeze()

    def begin(self, model: Any, run: ForwardPass) -> None:
        """Takes the experts' arguments, and finds the items whose router is asked: those with labels."""
        extras, run.kwargs = take_extras(model.config, run.kwargs)
        run.own[_OWN] = _ExpertPass(extras)
        if extras.padding_mask is not None:
            # Hidden tokens keep their positions, and their places in the grid of an image.
            run.counted_mask = extras.padding_mask
        if extras.hidden is not None:
            check_hiding(
                extras.hidden,
                attention_mask=run.attention_mask,
                padding_mask=extras.padding_mask,
                text_config=model.config.text_config,
                needs_padding=model.mrope and run.position_ids is None,
                cached=run.cached,
            )
        for modality, labels_I in extras.router_labels.items():
            tokens = extras.item_tokens.get(modality)
            runs = item_runs(run.masks[modality]) if tokens is None and modality in run.masks else []
            if tokens is None and len(runs) == labels_I.numel():
                tokens = runs
            run.items[modality] = ItemCounts(tokens, labels_I.numel())

    def encode(self, model: Any, run: ForwardPass) -> None:
        """Asks the routers of labelled items, and runs the experts."""
        own: _ExpertPass = run.own[_OWN]
        own.outputs = _router_outputs(model, run.features, own.extras)
        own.features = model.encode_experts(own.extras)

    def own_ids(self, config: Any) -> list[int]:
        """Returns the ids of blocks and slots."""
        return own_ids(config)

    def place(self, model: Any, run: ForwardPass, x_BLD: torch.Tensor) -> torch.Tensor:
        """Puts experts' features at their context tokens, and the learned vectors at the separators."""
        if not model.config.experts:
            return x_BLD
        made = run.own[_OWN].features
        return place_blocks(x_BLD, run.input_ids, made, model=model, past_key_values=run.past_key_values)

    def edit(self, model: Any, run: ForwardPass, reading: Reading) -> Reading:
        """Takes hidden tokens, and experts' padding, from what is read."""
        own: _ExpertPass = run.own[_OWN]
        extras, mask = own.extras, reading.attention_mask
        unseen_BL = unseen(model.config, run.input_ids, own.features)
        if extras.hidden == "learned":
            reading = _covered(model, reading, extras)
        if unseen_BL is not None and not (isinstance(mask, dict) or _is_ready(reading)):
            whole = reading.attention_mask
            whole = torch.ones_like(unseen_BL, dtype=torch.long) if whole is None else whole
            reading = replace(reading, attention_mask=whole.masked_fill(unseen_BL.to(whole.device), 0))
        if extras.hidden != "drop":
            return reading
        reading, kept = _dropped(reading, extras.padding_mask)
        own.outputs["kept_places"] = kept.places_BK
        return reading

    def outputs(self, model: Any, run: ForwardPass) -> dict[str, Any]:
        """Returns what the routers said, and which places are left when tokens were dropped."""
        return run.own[_OWN].outputs

    def edit_labels(self, labels: torch.Tensor, outputs: Any, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Leaves out labels of hidden tokens, and moves labels to the places that are left."""
        if kwargs.get("hidden") not in ("mask", "drop"):
            return labels
        return learnable(labels, kwargs["attention_mask"], kwargs.get("padding_mask"), kept=outputs.kept_places)

    def loss(self, model: Any, outputs: Any) -> torch.Tensor | None:
        """Returns the routers' loss, weighted."""
        return None if outputs.router_loss is None else model.config.router_loss_weight * outputs.router_loss

    def input_names(self, model: Any) -> Iterable[str]:
        """Returns every argument of experts and router."""
        return expert_input_names(model)

    def is_input(self, config: Any, key: str) -> bool:
        """Returns whether an argument belongs to experts or router."""
        return key in EXTRA_NAMES or expert_names(config, key) is not None or key.endswith(ITEM_TOKENS)

    def expand(self, model: Any, kwargs: dict[str, Any], input_ids: torch.Tensor | None, times: int) -> dict[str, Any]:
        """Repeats experts' features that were made already."""
        made = kwargs.get("expert_features")
        if not made:
            return kwargs
        masks = expert_masks(model.config, input_ids)
        repeated = {name: expand_expert(found, masks[name], times) for name, found in made.items()}
        return {**kwargs, "expert_features": repeated}


def _router_outputs(model: Any, features: Mapping[str, Features], extras: Extras) -> dict[str, Any]:
    """Returns what the routers say of labelled items (0 rows where there are none), and the sum of their losses."""
    logits, losses = {}, []
    for modality, labels_I in extras.router_labels.items():
        router = model.routers[modality]
        asked = model.ask_router(modality, features[modality]) if modality in features else None
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
    return {"router_logits": logits, "router_loss": torch.stack(losses).sum()} if losses else {}


def _covered(model: Any, reading: Reading, extras: Extras) -> Reading:
    """Puts the learned vector in the place of hidden tokens, which are read like any other."""
    if not model.config.mask_token:
        raise ValueError("This model has no mask_token; call add_mask_token(model) first.")
    padding_BL = extras.padding_mask
    hidden_BL = (reading.attention_mask == 0) & (padding_BL != 0)
    vector_D = model.mask_token.to(reading.x_BLD.dtype)
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
