"""The parts of a multimodal model, and which tensor belongs to which.

A tensor's *key* is how a checkpoint file spells it; its *name* is how mcompose spells it in every source alike, so that
two sources are compared name by name however their files spell them:

* language, embedding and head tensors are named relative to the decoder: ``layers.0.self_attn.q_proj.weight``,
  ``embed_tokens.weight``, ``norm.weight``; the head is ``lm_head.weight``;
* decoupled groups (DAMC) are named beside their linear: ``layers.0.self_attn.q_proj.groups.image.weight``;
* encoder and projector tensors are named as in memory, relative to transformers' base model:
  ``vision_tower.encoder.layers.0...``, ``multi_modal_projector.linear_1.weight``, ``image_newline``; so are experts and
  routers: ``experts.charts.encoder...``, ``routers.image.weight``, ``domain_tokens``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcompose.part_names import (
    EMBEDDING,
    ENCODER,
    EXPERT,
    GROUP,
    HEAD,
    LANGUAGE,
    MASK,
    ORIGIN,
    PROJECTOR,
    ROUTER,
    SEPARATORS,
    SOURCE_PARTS,
    qualified,
)

__all__ = [
    "EMBEDDING",
    "ENCODER",
    "EXPERT",
    "EXPERT_PARTS",
    "GROUP",
    "HEAD",
    "LANGUAGE",
    "MASK",
    "ORIGIN",
    "PARTS",
    "PROJECTOR",
    "ROUTER",
    "SEPARATORS",
    "UNUSED",
    "Anatomy",
    "Slot",
    "expert_of",
    "is_expert_slot",
    "part_label",
]

UNUSED = "unused"
PARTS = (*SOURCE_PARTS, UNUSED)
EXPERT_PARTS = (EXPERT, ROUTER, SEPARATORS, MASK)

_OWNED = re.compile(r"(?:towers|experts|routers)\.([^.]+)\.")


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a checkpoint belongs.

    Args:
        key: Spelling in the checkpoint's files.
        name: Spelling that all sources share; see the module's docstring.
        part: One of ``PARTS``, ``group:<modality>``, ``origin``, or one of the experts' parts. Everything that is
            neither language model nor encoder is ``projector``: the connector, a learned newline, query tokens.
            ``unused`` is what no answer needs and no output gets: a buffer that old files hold, a speech generator; its
            name is its key.
        layer: Index of the decoder layer, or of the encoder layer; None outside the layers.
        reason: Why the tensor is ``unused``; empty for the other parts.
    """

    key: str
    name: str
    part: str
    layer: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Anatomy:
    """A total, disjoint map of a checkpoint's tensors to parts.

    Args:
        model_type: transformers' model type; for a wrapper, the type of the part that answers
            (``qwen2_5_omni_thinker``).
        architecture: transformers' class name.
        known: False when transformers does not know the type and the parts were told by key roles.
        slots: Key to slot, in the order of the checkpoint.
        text_config: Config of the language model as a plain dict, with its ``model_type``.
        num_layers: Decoder layers.
        modalities: What the checkpoint takes beside text, in the order of ``MODALITIES``.
        placeholders: Modality to the id of its placeholder token, where the config tells.
        tied: True when the head is the embedding; such a checkpoint has no head slot, or one to be ignored.
        refusal: Why the checkpoint cannot be a source of a composition; empty when it can.
        warnings: Sentences for the user.
    """

    model_type: str
    architecture: str
    known: bool
    slots: Mapping[str, Slot]
    text_config: Mapping[str, Any]
    num_layers: int
    modalities: tuple[str, ...] = ()
    placeholders: Mapping[str, int] = field(default_factory=dict)
    tied: bool = False
    refusal: str = ""
    warnings: tuple[str, ...] = ()

    def by_name(self, *parts: str) -> dict[str, Slot]:
        """Name to slot for the given parts (all but ``unused`` when none is given), in the order of the checkpoint."""
        wanted = parts or {slot.part for slot in self.slots.values()} - {UNUSED}
        return {slot.name: slot for slot in self.slots.values() if slot.part in wanted}


def is_expert_slot(slot: Slot) -> bool:
    """Whether a tensor of a composed source belongs to experts or routers."""
    return slot.part in EXPERT_PARTS or slot.name.startswith("experts.")


def expert_of(slot: Slot) -> str:
    """Name of the expert that a tensor belongs to; empty for routers and vectors."""
    return slot.name.split(".")[1] if slot.name.startswith("experts.") else ""


def part_label(name: str, part: str) -> str:
    """Returns a part's name with its owner, as stages and ledgers write it: ``projector:sees``, ``group:audio``.

    Args:
        name: Name of one of the part's tensors; see the module's docstring.
        part: What the anatomy says of the tensor.
    """
    owner = _OWNED.match(name)
    return qualified(part, owner[1]) if owner else part
