"""The anatomy of a checkpoint: which tensor belongs to language model, embedding, head, encoder or projector.

It is read from the config and the keys of the files, never from weights. Families in ``data/families.json`` need
neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.anatomy.compare import can_compose
from mcompose.anatomy.composed import group_part
from mcompose.anatomy.part import (
    ADAPTER,
    EMBEDDING,
    ENCODER,
    EXPERT,
    GROUP,
    HEAD,
    LANGUAGE,
    MASK,
    ORIGIN,
    PARTS,
    PROJECTOR,
    ROUTER,
    SEPARATORS,
    UNUSED,
    Anatomy,
    Slot,
    part_label,
)
from mcompose.anatomy.read import read_anatomy
from mcompose.anatomy.summary import summarise
from mcompose.doors import lazy_names

if TYPE_CHECKING:
    from mcompose.anatomy.family import BUFFERS, Family
    from mcompose.anatomy.layers import DecoderFacts, decoder_facts
    from mcompose.anatomy.meta import build_on_meta, config_of, is_known, language_classes, renamings_of
    from mcompose.anatomy.part import expert_of, is_expert_slot
    from mcompose.anatomy.settings import config_for_meta

__all__ = [
    "ADAPTER",
    "BUFFERS",
    "EMBEDDING",
    "ENCODER",
    "EXPERT",
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
    "DecoderFacts",
    "Family",
    "Slot",
    "build_on_meta",
    "can_compose",
    "config_for_meta",
    "config_of",
    "decoder_facts",
    "expert_of",
    "group_part",
    "is_expert_slot",
    "is_known",
    "language_classes",
    "part_label",
    "read_anatomy",
    "renamings_of",
    "summarise",
]

_HOME = {
    "BUFFERS": "family",
    "DecoderFacts": "layers",
    "Family": "family",
    "build_on_meta": "meta",
    "config_for_meta": "settings",
    "config_of": "meta",
    "decoder_facts": "layers",
    "expert_of": "part",
    "is_expert_slot": "part",
    "is_known": "meta",
    "language_classes": "meta",
    "renamings_of": "meta",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
