"""Groups of entities, one of each modality, whose captions mean alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mcompose.evaluate.commonality.captions import Entity

__all__ = ["Group", "group_entities"]

_ROWS_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class Group:
    """Entities that belong together.

    Args:
        members: One entity per modality, in the order of the modalities.
        similarity: Cosine of the two captions in it that are least alike.
    """

    members: tuple[Entity, ...]
    similarity: float


def group_entities(
    entities: Sequence[Entity],
    vectors: np.ndarray,
    modalities: Sequence[str],
    *,
    reuse: int = 1,
    min_similarity: float = 0.0,
) -> list[Group]:
    """Forms groups greedily.

    Every entity of the first modality gathers, one modality after the other, the entity that is most like those that it
    has; the tightest groups are kept, and entities that are used up leave the others to gather again.

    Args:
        entities: All entities.
        vectors: Rows of length 1, one per entity.
        modalities: Which modalities a group has.
        reuse: In how many groups one entity may be.
        min_similarity: Groups whose least similarity is below are not made.

    Returns:
        Groups, tightest first; ties go by the entities' order.
    """
    left = {m: [i for i, e in enumerate(entities) if e.modality == m for _ in range(reuse)] for m in modalities}
    groups: list[tuple[float, tuple[int, ...]]] = []
    taken: set[tuple[int, ...]] = set()
    while all(left.values()):
        found = _gathered(vectors, [sorted(set(left[m])) for m in modalities])
        found = [(low, ids) for low, ids in found if low >= min_similarity and ids not in taken]
        kept = 0
        for low, ids in found:
            if all(i in left[m] for i, m in zip(ids, modalities, strict=True)):
                groups.append((low, ids))
                taken.add(ids)
                kept += 1
                for i, m in zip(ids, modalities, strict=True):
                    left[m].remove(i)
        if not kept:
            break
    groups.sort(key=lambda group: (-group[0], group[1]))
    return [Group(tuple(entities[i] for i in ids), float(low)) for low, ids in groups]


def _gathered(vectors: np.ndarray, pools: Sequence[Sequence[int]]) -> list[tuple[float, tuple[int, ...]]]:
    """Returns one group per entity of the first pool, with its least similarity; tightest first."""
    members = np.asarray(pools[0])[:, None]
    for pool in pools[1:]:
        offered = vectors[list(pool)].T
        nearest = [
            np.argmax(vectors[rows].sum(axis=1) @ offered, axis=1)
            for rows in np.array_split(members, len(members) // _ROWS_AT_ONCE + 1)
        ]
        members = np.concatenate([members, np.asarray(pool)[np.concatenate(nearest)][:, None]], axis=1)
    pairs = [(a, b) for a in range(members.shape[1]) for b in range(a)]
    cosines = [np.einsum("nd,nd->n", vectors[members[:, a]], vectors[members[:, b]]) for a, b in pairs]
    low = np.min(cosines, axis=0)
    order = sorted(range(len(members)), key=lambda n: (-float(low[n]), n))
    return [(float(low[n]), tuple(int(i) for i in members[n])) for n in order]
