"""Masks: pure functions from batch to batch, applied right after the collator.

A mask takes the collator's batch (``attention_mask``, ``position_ids``, ``labels``, ``mm_token_type_ids``, media),
the ``domains`` of the samples and their ``positions`` in the stage, and returns a batch with tokens hidden. Random
numbers depend on seed and position alone: the same sample at the same position of a stage gets the same mask in any
process, and after any interruption. A token is hidden by zeroing its ``attention_mask`` and
keeping all ``position_ids``, which every attention implementation supports. An example is ``gscm.py``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Batch", "Mask", "Masked", "mask_generator"]

Batch: TypeAlias = dict[str, Any]
Mask: TypeAlias = Callable[[Batch], Batch]

_MASK_INPUTS = ("domains", "positions", "mm_token_type_ids")
"""Inputs that masks read and not every model accepts."""


def mask_generator(seed: int, position: int, *, purpose: str) -> np.random.Generator:
    """Makes the random generator of one sample of a stage.

    Args:
        seed: Seed of the stage.
        position: Position of the sample in the stage, from 0.
        purpose: Name of the use, so that two uses do not share random numbers.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), position])


class Masked:
    """Collator that applies masks to its batches.

    Args:
        collate: Collator; takes samples and their positions in the stage.
        masks: Masks to apply, in order.
        keep: Inputs that the model accepts, of ``domains``, ``positions`` and ``mm_token_type_ids``.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Any], Sequence[int]], Mapping[str, Any]],
        masks: Sequence[Mask] = (),
        *,
        keep: Sequence[str] = (),
    ) -> None:
        self._collate = collate
        self._masks = tuple(masks)
        self._dropped = tuple(name for name in _MASK_INPUTS if name not in keep)

    @property
    def collate(self) -> Callable[[Sequence[Any], Sequence[int]], Mapping[str, Any]]:
        """Collator, without masks."""
        return self._collate

    def __call__(self, items: Sequence[tuple[int, Any]]) -> Batch:
        """Makes a batch.

        Args:
            items: Position and sample, as ``Ordered`` yields them.

        Returns:
            The model's inputs, and ``tokens``: the number of tokens without padding.
        """
        positions = [position for position, _ in items]
        batch: Batch = dict(self._collate([sample for _, sample in items], positions))
        batch["positions"] = positions
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        for mask in self._masks:
            batch = mask(batch)
        batch = {name: value for name, value in batch.items() if name not in self._dropped}
        return {**batch, "tokens": tokens}
