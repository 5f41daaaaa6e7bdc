"""Sources with an adapter: where training kept a head beside the embedding, the source has two tables from then on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mcompose.anatomy import EMBEDDING, HEAD, Slot
from mcompose.part_names import HEAD_NAME

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy
    from mcompose.checkpoint import Adapter, Checkpoint

__all__ = ["bind_adapter"]

UNTIED = (
    "The adapter changed embedding and head apart, which are one table in its base: the output has a head of its own."
)


def bind_adapter(adapter: Adapter, checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Checkpoint, Anatomy, Adapter]:
    """Matches an adapter to its base.

    Args:
        adapter: The adapter, as it was opened.
        checkpoint: Its base.
        anatomy: Parts of the base.

    Returns:
        The base, its parts, and the adapter with its folds. Where one table is embedding and head, and the adapter was
        trained on one of them or on both apart, the base then has a head that lies where its embedding lies.

    Raises:
        CheckpointError: The adapter does not fit.
    """
    tables = [slot for slot in anatomy.slots.values() if slot.part == EMBEDDING and slot.name.endswith("weight")]
    if not anatomy.tied or len(tables) != 1:
        return checkpoint, anatomy, adapter.bind(checkpoint.tensors)
    key, head = tables[0].key, anatomy.head_key
    bound = adapter.bind(checkpoint.tensors, tied=(key, head))
    if not bound.unties:
        return checkpoint, anatomy, bound
    tensors = {**checkpoint.tensors, head: replace(checkpoint.tensors[key], key=head)}
    slots = {**anatomy.slots, head: Slot(head, HEAD_NAME, HEAD)}
    text = {**anatomy.text_config, "tie_word_embeddings": False}
    return (
        replace(checkpoint, tensors=tensors),
        replace(anatomy, slots=slots, text_config=text, tied=False, warnings=(*anatomy.warnings, UNTIED)),
        bound,
    )
