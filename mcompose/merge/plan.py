"""Plans the jobs of a merge from recipe and headers, before the first weight is read.

The language tensors (decoder, embedding, head) of all sources are paired by name. Tensors that all share are merged; a
tensor that only some sources have is an error that names them. Vocabulary tables are merged over the rows that all
share; every other row is kept from one named source, or dropped and listed. Towers are copied bit for bit. This module
does not import torch: a 70B recipe is planned from its headers in well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcompose.anatomy import ENCODER, PROJECTOR
from mcompose.checkpoint import TensorEntry
from mcompose.errors import CompositionError
from mcompose.merge.job import Contribution, Dropped, Segment, TensorJob
from mcompose.merge.pairing import KeyOf, SourceParts, TensorPairing
from mcompose.part_names import TOWER_PARTS
from mcompose.recipe import drop_whole_slice

if TYPE_CHECKING:
    from mcompose.recipe import MergeSpec, Slice, SliceSource

__all__ = ["KeyOf", "SourceParts", "copy_job", "language_jobs", "moved_places", "tower_jobs"]


def language_jobs(
    merge: MergeSpec,
    sources: Sequence[SourceParts],
    base: SourceParts | None = None,
    *,
    key_of: KeyOf,
    target: SourceParts | None = None,
) -> tuple[list[TensorJob], list[Dropped]]:
    """Plans the jobs of the shared language model.

    Args:
        merge: The recipe's merge section.
        sources: All sources with a language model, in the recipe's order.
        base: The language model that all started from, where the recipe names it. It limits the vocabulary rows that
            are merged even when the method does not use it: each source added further rows independently.
        key_of: Function from (name, part) to the key in the output.
        target: The source whose extra vocabulary rows the output keeps; None drops all rows that not every source has.

    Returns:
        The jobs in the order of the target's (or the first source's) tensors, and the dropped tensors.

    Raises:
        CompositionError: The sources do not fit together: names, shapes, or dtypes that cannot be merged.
        RequestError: The method lacks its base, its parameters or enough sources.
    """
    if not sources:
        raise CompositionError("No source has a language model.", hint="Add a source with a language model.")
    merge = drop_whole_slice(merge, num_layers=sources[0].anatomy.num_layers)
    pairing = TensorPairing(merge, sources, base, key_of=key_of, target=target)
    jobs = pairing.sliced_jobs() if merge.slices else pairing.jobs()
    return jobs, pairing.dropped


def tower_jobs(
    merge: MergeSpec,
    sources: Sequence[SourceParts],
    base: SourceParts | None = None,
    *,
    key_of: KeyOf,
    target: SourceParts,
) -> tuple[list[TensorJob], list[Dropped]]:
    """Plans the jobs of merged towers: encoders and projectors of sources of one class are paired by name.

    Args:
        merge: The recipe's merge section. As in mergekit, gradients run over the layers of each encoder on its own, and
            the projector has their first value; overrides by layer apply where they name the part ``encoder``.
        sources: The sources whose towers are merged.
        base: The base, where it has such towers too.
        key_of: Function from (name, part) to the key in the output.
        target: The source whose order of tensors the output keeps.

    Returns:
        The jobs, and the dropped tensors.

    Raises:
        CompositionError: The towers differ in names or shapes.
        RequestError: The method lacks its base, its parameters or enough sources.
    """
    merge = drop_whole_slice(merge, num_layers=target.anatomy.num_layers)
    pairing = TensorPairing(merge, sources, base, key_of=key_of, target=target, parts=TOWER_PARTS)
    return pairing.jobs(), pairing.dropped


def moved_places(merge: MergeSpec, num_layers: int) -> tuple[tuple[str, int], ...]:
    """Returns which layers of the sources the output's decoder layers come from, for its config.

    Args:
        merge: The recipe's merge section.
        num_layers: Number of decoder layers of the sources.

    Returns:
        For each output layer, the first source of its slice and the layer there; empty when no slice moves a layer.
    """
    merge = drop_whole_slice(merge, num_layers=num_layers)
    leads = [_lead(piece) for piece in merge.slices or ()]
    found = tuple((lead.source, layer) for lead in leads for layer in range(*lead.layer_range))
    return () if [layer for _, layer in found] == list(range(num_layers)) else found


def _lead(piece: Slice) -> SliceSource:
    """Returns the first source of a slice, whose layers name the tensors."""
    return next(entry for entry in piece.sources if entry.source == piece.names[0])


def copy_job(name: str, entry: TensorEntry, part: str, *, source: str, layer: int | None = None) -> TensorJob:
    """Returns the job of a tensor that is copied bit for bit, whatever its dtype.

    Args:
        name: Key in the output's files.
        entry: Tensor of the source.
        part: ``encoder`` or ``projector``, to which the source's name is added, or another part, used unchanged.
        source: Name of the source.
        layer: Index of the layer, for the plan.
    """
    if part in (ENCODER, PROJECTOR):
        part = f"{part}:{source}"
    rows = entry.shape[0] if entry.shape else 1
    segment = Segment(0, rows, "copied", (Contribution(source, entry),))
    return TensorJob(name, part, layer, entry.dtype, entry.shape, (segment,))
