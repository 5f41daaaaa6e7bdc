"""The anatomy of a checkpoint: which tensor belongs to language model, embedding, head, encoder or projector.

It is read from the config and the keys of the files, never from weights. Families in ``data/families.json`` need
neither torch nor transformers.
"""

from mcompose.anatomy.compare import can_compose
from mcompose.anatomy.composed import group_part
from mcompose.anatomy.part import (
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

__all__ = [
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
    "Slot",
    "can_compose",
    "group_part",
    "part_label",
    "read_anatomy",
    "summarise",
]
