"""From recipe and headers to jobs: what becomes of every tensor, decided before the first weight is read.

The language tensors (decoder, embedding, head) of all sources meet by name. What all share is merged; what only some
hold is an error that names them, never a silent choice; vocabulary tables are merged over the rows that all share and
every other row is kept from one named source or dropped, and listed. Towers are copied bit for bit. No torch here: a
70B recipe is planned from its headers in well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcompose.anatomy import ENCODER, PROJECTOR
from mcompose.checkpoint import TensorEntry
from mcompose.errors import CompositionError
from mcompose.merge.job import Contribution, Dropped, Segment, TensorJob
from mcompose.merge.pairing import KeyOf, Meeting, SourceParts
from mcompose.part_names import TOWER_PARTS
from mcompose.recipe import drop_whole_slice

if TYPE_CHECKING:
    from mcompose.recipe import MergeSpec, Slice, SliceSource

__all__ = ["KeyOf", "SourceParts", "copy_job", "language_jobs", "output_layers", "tower_jobs"]


def language_jobs(
    merge: MergeSpec,
    sources: Sequence[SourceParts],
    base: SourceParts | None = None,
    *,
    key_of: KeyOf,
    target: SourceParts | None = None,
) -> tuple[list[TensorJob], list[Dropped]]:
    """Plans the shared language model.

    Args:
        merge: The recipe's merge section.
        sources: All sources that hold a language model, in the recipe's order.
        base: The language model that all started from, where the recipe names it. It bounds the vocabulary rows that
            are merged even where the method does not use it: rows beyond it were added by each source for itself.
        key_of: Spells the output's keys.
        target: The source whose extra vocabulary rows the output keeps; None drops every row that not all share.

    Returns:
        The jobs in the order of the target's (or the first source's) tensors, and what is dropped.

    Raises:
        CompositionError: Sources that do not fit together: names, shapes, or dtypes that cannot be merged.
        RequestError: A method that lacks its base, its parameters or enough sources.
    """
    if not sources:
        raise CompositionError("No source holds a language model.", hint="Name at least one source.")
    merge = drop_whole_slice(merge, num_layers=sources[0].anatomy.num_layers)
    meeting = Meeting(merge, sources, base, key_of=key_of, target=target)
    jobs = meeting.sliced_jobs() if merge.slices else meeting.jobs()
    return jobs, meeting.dropped


def tower_jobs(
    merge: MergeSpec,
    sources: Sequence[SourceParts],
    base: SourceParts | None = None,
    *,
    key_of: KeyOf,
    target: SourceParts,
) -> tuple[list[TensorJob], list[Dropped]]:
    """Plans merged towers: encoders and projectors of sources of one class meet by name, like the language model.

    Args:
        merge: The recipe's merge section; settings by layer do not reach into towers.
        sources: The sources whose towers are merged.
        base: The base, where it has such towers too.
        key_of: Spells the output's keys.
        target: The source whose order of tensors the output keeps.

    Returns:
        The jobs, and what is dropped.

    Raises:
        CompositionError: The towers differ in names or shapes.
        RequestError: A method that lacks its base, its parameters or enough sources.
    """
    meeting = Meeting(merge, sources, base, key_of=key_of, target=target, parts=TOWER_PARTS)
    return meeting.jobs(), meeting.dropped


def output_layers(merge: MergeSpec, num_layers: int) -> tuple[int, ...]:
    """Where the decoder layers of the output come from, for its config.

    Args:
        merge: The recipe's merge section.
        num_layers: Decoder layers of the sources.

    Returns:
        For each output layer, the layer that the first source of its slice gives; all in order without slices.
    """
    merge = drop_whole_slice(merge, num_layers=num_layers)
    if not merge.slices:
        return tuple(range(num_layers))
    return tuple(layer for piece in merge.slices for layer in range(*_lead(piece).layer_range))


def _lead(piece: Slice) -> SliceSource:
    """The first source of a slice, whose layers name its tensors."""
    return next(entry for entry in piece.sources if entry.source == piece.names[0])


def copy_job(name: str, entry: TensorEntry, part: str, *, source: str, layer: int | None = None) -> TensorJob:
    """A tensor that is copied bit for bit, whatever its dtype.

    Args:
        name: Key in the output's files.
        entry: The source's tensor.
        part: ``encoder`` or ``projector`` (the ledger adds the source's name), or any other part as it is.
        source: Name of the source.
        layer: Index of the layer, for the record.
    """
    if part in (ENCODER, PROJECTOR):
        part = f"{part}:{source}"
    rows = entry.shape[0] if entry.shape else 1
    segment = Segment(0, rows, "copied", (Contribution(source, entry),))
    return TensorJob(name, part, layer, entry.dtype, entry.shape, (segment,))
