"""Masks: pure functions from a batch to a batch, applied where batches are made.

A mask takes what the collator made (``attention_mask``, ``position_ids``, ``labels``, ``mm_token_type_ids``, media),
the ``domains`` of the samples and their ``positions`` in the stage, and returns a batch with tokens hidden. Randomness
is addressed by seed and position: the same sample at the same place of the same stage gets the same mask, whichever
process prepares it and however often the run was interrupted. A token is hidden by zeroing its ``attention_mask`` and
leaving the ``position_ids`` of all others alone, which every attention implementation takes. ``gscm.py`` has one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Batch", "Mask", "Masked", "mask_generator"]

Batch: TypeAlias = dict[str, Any]
Mask: TypeAlias = Callable[[Batch], Batch]

_ASIDE = ("domains", "positions", "mm_token_type_ids")
"""What masks read and not every model takes."""


def mask_generator(seed: int, position: int, *, purpose: str) -> np.random.Generator:
    """Yields the randomness of one sample of a stage.

    Args:
        seed: The stage's seed.
        position: Position of the sample in the stage.
        purpose: Purpose of the mask.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), position])


class Masked:
    """A collator whose batches went through masks.

    Args:
        collate: Samples, and their positions in the stage, to batch.
        masks: Applied in order.
        keep: What the model takes of ``domains``, ``positions`` and ``mm_token_type_ids``.
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
        self._aside = tuple(name for name in _ASIDE if name not in keep)

    @property
    def collate(self) -> Callable[[Sequence[Any], Sequence[int]], Mapping[str, Any]]:
        """What makes batches, before any mask."""
        return self._collate

    def __call__(self, items: Sequence[tuple[int, Any]]) -> Batch:
        """Makes a batch.

        Args:
            items: Position and sample, as ``Ordered`` gives them.

        Returns:
            What the model takes, and ``tokens``: how many of them are real.
        """
        positions = [position for position, _ in items]
        batch: Batch = dict(self._collate([sample for _, sample in items], positions))
        batch["positions"] = positions
        tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        for mask in self._masks:
            batch = mask(batch)
        batch = {name: value for name, value in batch.items() if name not in self._aside}
        return {**batch, "tokens": tokens}
