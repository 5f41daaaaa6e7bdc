"""The parts of a multimodal model, and the map from a checkpoint's tensors to parts.

The *key* of a tensor is its spelling in the checkpoint's files; its *name* is the same in every source, so that sources
can be compared name by name, however their files spell them:

* language, embedding and head tensors are named relative to the decoder: ``layers.0.self_attn.q_proj.weight``,
  ``embed_tokens.weight``, ``norm.weight``; the head is ``lm_head.weight``;
* decoupled groups (DAMC) are named under their linear layer: ``layers.0.self_attn.q_proj.groups.image.weight``;
* encoder and projector tensors are named as in memory, relative to transformers' base model:
  ``vision_tower.encoder.layers.0...``, ``multi_modal_projector.linear_1.weight``, ``image_newline``; experts and
  routers too: ``experts.charts.encoder...``, ``routers.image.weight``, ``domain_tokens``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcompose.part_names import (
    ADAPTER,
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
    "ADAPTER",
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
    """Part, name and layer of one tensor of a checkpoint.

    Args:
        key: Spelling in the checkpoint's files.
        name: Spelling that all sources share; see the module's docstring.
        part: One of ``PARTS``, ``group:<modality>``, ``origin``, ``adapter:<set>``, or one of ``EXPERT_PARTS``. What
            is neither language model nor encoder is ``projector``: the connector, a learned newline, query tokens.
            ``unused`` tensors are not needed to generate text and are left out of outputs: buffers in old files, a
            speech generator; their name is their key.
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
    """Map of all tensors of a checkpoint to parts, one part for each tensor.

    Args:
        model_type: transformers' model type; for a wrapper, the type of the part that generates text
            (``qwen2_5_omni_thinker``).
        architecture: Name of transformers' class.
        known: False when transformers does not know the type and the parts were guessed from the names of the keys.
        slots: Key to slot, in the order of the checkpoint.
        text_config: Config of the language model as a plain dict, with its ``model_type``.
        num_layers: Number of decoder layers.
        modalities: Modalities that the checkpoint accepts besides text, in the order of ``MODALITIES``.
        placeholders: Modality to the id of its placeholder token, where the config has one.
        tied: True when the head is the embedding; such a checkpoint does not have a head slot, or one to ignore.
        declared_tied: Whether the config says so; the files may say otherwise, and they are believed.
        head_key: Key of the head in files, also where they do not hold one.
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
    declared_tied: bool = False
    head_key: str = "lm_head.weight"
    refusal: str = ""
    warnings: tuple[str, ...] = ()

    def by_name(self, *parts: str) -> dict[str, Slot]:
        """Returns name to slot for some parts (default: all except ``unused``), in the order of the checkpoint."""
        wanted = parts or {slot.part for slot in self.slots.values()} - {UNUSED}
        return {slot.name: slot for slot in self.slots.values() if slot.part in wanted}


def is_expert_slot(slot: Slot) -> bool:
    """Returns whether a tensor of a composed source belongs to experts or routers."""
    return slot.part in EXPERT_PARTS or slot.name.startswith("experts.")


def expert_of(slot: Slot) -> str:
    """Returns the name of the expert that a tensor belongs to; empty for routers, separators and the mask vector."""
    return slot.name.split(".")[1] if slot.name.startswith("experts.") else ""


def part_label(name: str, part: str) -> str:
    """Returns a part's name with its owner, as stages and ledgers write it: ``projector:sees``, ``group:audio``.

    Args:
        name: Name of one of the part's tensors; see the module's docstring.
        part: Part of the tensor in the anatomy.
    """
    owner = None if part.startswith(f"{ADAPTER}:") else _OWNED.match(name)
    return qualified(part, owner[1]) if owner else part
