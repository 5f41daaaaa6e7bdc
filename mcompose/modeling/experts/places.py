"""The expert side of a forward pass: which arguments belong to it, and where its vectors go.

Letters: B text rows, L tokens, D width of the language model, N vectors of one expert, I items.

In the text the block of an item is ``<domain>``, one ``<expert:NAME>`` per vector, ``</domain>``, right after the
item's own tokens; an item without an expert has no block at all. An ``<expert>`` slot means that the router has not
been asked yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache

from ..names import SEPARATOR
from ..network.placement import check_missing, expand_features, place
from ..towers.features import Features
from .expert import ExpertFeatures

__all__ = [
    "EXTRA_NAMES",
    "ITEM_TOKENS",
    "Extras",
    "expand_expert",
    "expert_input_names",
    "expert_masks",
    "expert_names",
    "own_ids",
    "place_blocks",
    "take_extras",
    "unseen",
]

ITEM_TOKENS = "_item_tokens"
_NAMES = ("expert_features", "router_labels", "router_items_in_batch", "hidden", "padding_mask", "routes")
EXTRA_NAMES = frozenset(_NAMES)


@dataclass
class Extras:
    """Arguments of a forward pass beside those of a plain composition.

    Args:
        inputs: Expert -> native name -> tensor.
        expert_features: Features that were made already.
        router_labels: Modality -> class of each item (I,), -100 where unknown.
        router_items_in_batch: What the router's loss is divided by; None for the labelled items.
        item_tokens: Modality -> placeholder tokens of each item.
        hidden: How zeros inside the attention mask hide tokens, None when there are none.
        padding_mask: (B, L) of real tokens, hidden ones included.
    """

    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    expert_features: dict[str, ExpertFeatures] | None = None
    router_labels: dict[str, torch.Tensor] = field(default_factory=dict)
    router_items_in_batch: Any = None
    item_tokens: dict[str, list[int]] = field(default_factory=dict)
    hidden: str | None = None
    padding_mask: torch.Tensor | None = None


def expert_names(config: Any, key: str) -> str | None:
    """Returns the expert that an argument ``<expert>__<name>`` belongs to, or None."""
    name, separator, _ = key.partition(SEPARATOR)
    return name if separator and name in config.experts else None


def expert_input_names(model: Any) -> list[str]:
    """Returns every argument that a ``ComposedModel`` takes for its experts and its router."""
    if not (model.config.experts or model.config.routers):
        return []
    named = [f"{name}{SEPARATOR}{key}" for name, expert in model.experts.items() for key in expert.known]
    return [*named, *(f"{modality}{ITEM_TOKENS}" for modality in model.ids), *_NAMES]


def take_extras(config: Any, kwargs: Mapping[str, Any]) -> tuple[Extras, dict[str, Any]]:
    """Separates these arguments from the rest.

    Raises:
        ValueError: Router labels that cannot be told apart by modality.
    """
    rest: dict[str, Any] = {}
    extras = Extras()
    for key, value in kwargs.items():
        if (name := expert_names(config, key)) is not None:
            if value is not None:
                extras.inputs.setdefault(name, {})[key.split(SEPARATOR, 1)[1]] = value
        elif key.endswith(ITEM_TOKENS) and config.served_by(key.removesuffix(ITEM_TOKENS)):
            if value is not None:
                extras.item_tokens[key.removesuffix(ITEM_TOKENS)] = [int(count) for count in value]
        elif key == "router_labels":
            extras.router_labels = _labels(config, value)
        elif key in EXTRA_NAMES and key != "routes":
            setattr(extras, key, value)
        elif key != "routes":
            rest[key] = value
    return extras, rest


def expert_masks(config: Any, input_ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns expert -> bool mask (B, L) of its context tokens."""
    if input_ids is None:
        return {}
    return {name: input_ids == index for name, index in config.expert_token_ids.items()}


def own_ids(config: Any) -> list[int]:
    """Returns the ids of blocks and slots, which need no row in the embedding table."""
    slot = [] if config.expert_slot_id is None else [config.expert_slot_id]
    return [*config.expert_token_ids.values(), *config.domain_token_ids, *slot]


def place_blocks(
    x_BLD: torch.Tensor,
    input_ids: torch.Tensor | None,
    made: Mapping[str, ExpertFeatures],
    *,
    model: Any,
    past_key_values: Cache | None,
) -> torch.Tensor:
    """Puts experts' features at their context tokens, and the learned vectors at the separators.

    Args:
        x_BLD: Embedded text.
        input_ids: Token ids (B, L).
        made: Expert -> its features, in reading order of the batch.
        model: The ``ComposedModel``.
        past_key_values: Cache of earlier tokens.

    Raises:
        ValueError: Features and tokens differ in number, or a slot is there whose expert is not chosen yet.
    """
    config = model.config
    if input_ids is None:
        if made:
            raise ValueError("The places of experts cannot be told from embeddings; pass input_ids.")
        return x_BLD
    slots = 0
    if not torch.compiler.is_compiling() and config.expert_slot_id is not None:
        slots = int((input_ids == config.expert_slot_id).sum())
    if slots:
        raise ValueError(
            f"The batch has {slots} <expert> slots that no expert was chosen for: call model.route(**inputs) first, "
            "or pass experts= to the processor."
        )
    named = {f"{name} expert": Features(found.x_ND) for name, found in made.items()}
    masks = {f"{name} expert": mask for name, mask in expert_masks(config, input_ids).items()}
    check_missing(named, masks, past_key_values=past_key_values)
    x_BLD = place(x_BLD, named, masks, input_ids=input_ids)
    for index, vector_D in zip(config.domain_token_ids, model.domain_tokens, strict=True):
        here_BL1 = (input_ids == index).to(x_BLD.device)[..., None]
        x_BLD = torch.where(here_BL1, vector_D.to(x_BLD.device, x_BLD.dtype), x_BLD)
    return x_BLD


def unseen(config: Any, input_ids: torch.Tensor | None, made: Mapping[str, ExpertFeatures]) -> torch.Tensor | None:
    """Returns which tokens (B, L) stand for padding that must not be attended to, None when none do."""
    if input_ids is None or all(found.valid_N is None for found in made.values()):
        return None
    unseen_BL = torch.zeros_like(input_ids, dtype=torch.bool)
    for name, mask_BL in expert_masks(config, input_ids).items():
        valid_N = made[name].valid_N if name in made else None
        if valid_N is not None:
            unseen_BL.masked_scatter_(mask_BL, ~valid_N.to(unseen_BL.device))
    return unseen_BL


def _labels(config: Any, value: Any) -> dict[str, torch.Tensor]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {modality: torch.as_tensor(labels) for modality, labels in value.items()}
    if len(config.routers) != 1:
        raise ValueError(
            f"router_labels must be given by modality: this composition has routers for {list(config.routers)}."
        )
    return {next(iter(config.routers)): torch.as_tensor(value)}


def expand_expert(features: ExpertFeatures, mask_BL: torch.Tensor, times: int) -> ExpertFeatures:
    """Repeats each text row's features of an expert, as :func:`expand_features` does; items are no longer told apart.

    Args:
        features: Features of the batch as it was.
        mask_BL: Its context tokens.
        times: How often each row is repeated.
    """
    counts = mask_BL.sum(dim=-1).tolist()
    x_ND = expand_features(Features(features.x_ND), mask_BL, times).x_ND
    if features.valid_N is None:
        return ExpertFeatures(x_ND, counts)
    valid_N1 = expand_features(Features(features.valid_N[:, None]), mask_BL, times).x_ND
    return ExpertFeatures(x_ND, counts, valid_N1[:, 0])
