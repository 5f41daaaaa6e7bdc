"""Builds a plan from jobs: the layout of the output, bytes and memory, and the fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcompose import __version__
from mcompose.checkpoint import DTYPE_BITS, Layout, plan_layout
from mcompose.errors import CompositionError
from mcompose.merge.execute import default_threads
from mcompose.merge.job import Dropped, MergePlan, TensorJob, fingerprint_of
from mcompose.merge.memory import peak_memory

__all__ = ["build_plan"]


def build_plan(
    jobs: Iterable[TensorJob],
    dropped: Iterable[Dropped] = (),
    *,
    max_shard_size: int,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    warnings: Sequence[str] = (),
) -> MergePlan:
    """Builds the plan of a merge.

    Args:
        jobs: Jobs of all output tensors.
        dropped: Source tensors that are not in the output.
        max_shard_size: Largest size of one file of the output, in bytes.
        metadata: ``__metadata__`` of the output's files.
        threads: Number of threads for the memory estimate; None for one per core.
        warnings: Sentences for the user.

    Returns:
        The plan, with its jobs in the order of the output's files.

    Raises:
        CompositionError: Two jobs write the same key.
    """
    jobs = list(jobs)
    _check_unique(jobs)
    layout = plan_layout(
        [(job.name, job.dtype, job.shape) for job in jobs], max_shard_size=max_shard_size, metadata=metadata
    )
    by_name = {job.name: job for job in jobs}
    ordered = tuple(by_name[name] for name in layout.places)
    count = threads or default_threads()
    return MergePlan(
        jobs=ordered,
        dropped=tuple(dropped),
        layout=layout,
        bytes_to_read=_bytes_to_read(ordered),
        bytes_to_write=sum(job.nbytes for job in ordered),
        peak_memory=peak_memory(ordered, threads=count),
        threads=count,
        fingerprint=fingerprint_of(ordered, layout=_layout_text(layout), version=__version__),
        warnings=(*warnings, *_idle_settings(ordered), *_low_rank_means(ordered)),
    )


def _idle_settings(jobs: Sequence[TensorJob]) -> list[str]:
    """Returns a sentence for every method that drops elements and has nothing to drop, at a density of 1."""
    shares: dict[str, dict[Any, None]] = {}
    for segment in (segment for job in jobs for segment in job.segments if segment.method):
        density = segment.parameters.get("density")
        if density is not None:
            shares.setdefault(segment.method, {})[density] = None
    return [
        f"'{method}' with a density of 1 keeps every element; set 'merge.parameters.density' below 1 to drop some."
        for method, found in shares.items()
        if all(value == 1 for density in found for value in (density if isinstance(density, tuple) else (density,)))
    ]


def _low_rank_means(jobs: Sequence[TensorJob]) -> list[str]:
    """Returns a sentence where Iso-C merges adapters: its mean is over their rank, the released function's is not."""
    factors = []
    for job in jobs:
        for segment in (one for one in job.segments if one.method == "iso-c" and len(job.shape) == 2):
            ranks = [one.low_rank.rank if one.low_rank is not None else 0 for one in segment.contributions]
            short = min(job.shape_of(segment))
            if all(ranks) and sum(ranks) < short:
                factors.append(short / sum(ranks))
    if not factors:
        return []
    low, high = (f"{value:.3g}" for value in (min(factors), max(factors)))
    factor = low if low == high else f"{low} to {high}"
    return [
        f"'iso-c' over adapters: its 'lambda' counts {factor} times as much as in the "
        "released function, which averages over the zeros beyond their rank too; divide a published value by that."
    ]


def _check_unique(jobs: Sequence[TensorJob]) -> None:
    seen: dict[str, TensorJob] = {}
    for job in jobs:
        other = seen.setdefault(job.name, job)
        if other is not job:
            raise CompositionError(
                f"Two tensors would be written as '{job.name}': one of {other.part}, one of {job.part}.",
                hint="Give the sources different names.",
            )


def _layout_text(layout: Layout) -> list[str]:
    return [f"{shard.filename}:{shard.header[8:].decode('utf-8')}" for shard in layout.shards]


def _bytes_to_read(jobs: Sequence[TensorJob]) -> int:
    """Returns the bytes of all inputs; a range that several jobs read is counted once."""
    ranges: dict[tuple[Path, int, int, int], int] = {}
    for job in jobs:
        for segment in job.segments:
            elements = (segment.stop - segment.start) * job.row_elements
            for c in segment.inputs:
                first = segment.start if c.first_row is None else c.first_row
                whole = segment.start == 0 and segment.stop == job.rows
                nbytes = c.entry.nbytes if whole else elements * DTYPE_BITS[c.entry.dtype] // 8
                ranges[(c.entry.file, c.entry.offset, first, segment.stop)] = min(nbytes, c.entry.nbytes)
    return sum(ranges.values())
