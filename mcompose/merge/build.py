"""From jobs to a plan: where every tensor lies in the output, what it costs, and the digest of what decides it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mcompose import __version__
from mcompose.checkpoint.layout import Layout, plan_layout
from mcompose.checkpoint.tensor import DTYPE_BITS
from mcompose.errors import CompositionError
from mcompose.merge.catalogue import find_method
from mcompose.merge.execute import default_threads
from mcompose.merge.job import Dropped, MergePlan, Segment, TensorJob, fingerprint_of
from mcompose.merge.stream import CHUNK

__all__ = ["build_plan"]

RUNTIME_MEMORY = 110 * 2**20
"""Python, numpy and the kernels, with everything loaded that a merge needs; measured."""

COUNTERS_PER_INPUT = 2 * 2**20
"""Room in which a rank is found: see `methods.select`."""

WHOLE_TENSOR_COPIES = 4
"""float32 copies of the output that a whole-tensor method holds beside its inputs; measured on mergekit's."""


def build_plan(
    jobs: Iterable[TensorJob],
    dropped: Iterable[Dropped] = (),
    *,
    max_shard_size: int,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    warnings: Sequence[str] = (),
) -> MergePlan:
    """Completes a plan.

    Args:
        jobs: All output tensors.
        dropped: What no output holds.
        max_shard_size: Most bytes of one file of the output.
        metadata: ``__metadata__`` of the output's files.
        threads: Threads that the memory estimate counts; None for one per core.
        warnings: Sentences for the user.

    Returns:
        The plan, with its jobs in the order of the output's files.

    Raises:
        CompositionError: Two jobs write one key.
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
        peak_memory=_peak_memory(ordered, threads=count),
        threads=count,
        fingerprint=fingerprint_of(ordered, layout=_layout_text(layout), version=__version__),
        warnings=tuple(warnings),
    )


def _check_unique(jobs: Sequence[TensorJob]) -> None:
    seen: dict[str, TensorJob] = {}
    for job in jobs:
        other = seen.setdefault(job.name, job)
        if other is not job:
            raise CompositionError(
                f"Two tensors would be written as '{job.name}': one of {other.part}, one of {job.part}.",
                hint="Sources need different names.",
            )


def _layout_text(layout: Layout) -> list[str]:
    return [f"{shard.filename}:{shard.header[8:].decode('utf-8')}" for shard in layout.shards]


def _bytes_to_read(jobs: Sequence[TensorJob]) -> int:
    """Every range of every file once, however many jobs read it."""
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


def _peak_memory(jobs: Sequence[TensorJob], *, threads: int) -> int:
    """The largest jobs at the same time, one a thread, over what the process needs anyway."""
    scratch = sorted((_scratch(job, s) for job in jobs for s in job.segments), reverse=True)
    return RUNTIME_MEMORY + sum(scratch[:threads])


def _scratch(job: TensorJob, segment: Segment) -> int:
    if segment.action in ("copied", "created"):
        return 2 * 2**20
    total = (segment.stop - segment.start) * job.row_elements
    widths = [DTYPE_BITS[c.entry.dtype] // 8 for c in segment.inputs]
    raw = sum(widths) + DTYPE_BITS[job.dtype] // 8
    if segment.action == "merged" and find_method(segment.method).program is None:
        return total * (raw + 4 * (len(widths) + WHOLE_TENSOR_COPIES))
    folded = sum(8 for c in segment.inputs if c.low_rank is not None)
    step = CHUNK if not folded else math.ceil(CHUNK / max(job.row_elements, 1)) * job.row_elements
    return min(total, step) * (raw + folded) + COUNTERS_PER_INPUT * len(widths)
