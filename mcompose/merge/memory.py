"""How much memory a merge takes, from headers alone: for ``plan``, and for what goes to a device.

A method with a chunked form holds a few chunks. All others hold whole tensors in float32, and those on singular vectors
square matrices in float64 beside them, which soon outweigh the tensors. How many of each was measured; the figures here
are upper bounds of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcompose.checkpoint import DTYPE_BITS
from mcompose.merge.catalogue import MERGEKIT_PREFIX, find_method
from mcompose.merge.job import Segment, TensorJob
from mcompose.merge.stream import CHUNK

__all__ = ["held_bytes", "peak_memory", "work_bytes"]

RUNTIME_MEMORY = 110 * 2**20
"""Python, numpy and the kernels, with everything loaded that a merge needs; measured."""

COPY_MEMORY = 2 * 2**20
"""Buffers of a copy."""

DRAW_BYTES = 48
"""Of an element of a new tensor while its first values are drawn."""

COUNTERS_PER_INPUT = 2 * 2**20
"""Room in which a rank is found: see `methods.select`."""

MERGEKIT_COPIES = 4
"""float32 copies of the output that mergekit's methods hold beside their inputs on the CPU."""


@dataclass(frozen=True)
class Taken:
    """What a method holds at its peak.

    Args:
        per_source: float32 copies of the tensor for every source.
        beside: float32 copies beside them, base and result included.
        squares: Elements of its float64 square matrices, of (sources, rows, columns).
    """

    per_source: int
    beside: int
    squares: Callable[[int, int, int], int]


def _no_squares(many: int, rows: int, columns: int) -> int:
    del many, rows, columns
    return 0


def _of_the_sum(many: int, rows: int, columns: int) -> int:
    del many
    return 6 * min(rows, columns) ** 2


def _of_every_source(many: int, rows: int, columns: int) -> int:
    return (8 + 2 * many) * min(rows, columns) ** 2


def _of_all_pairs(many: int, rows: int, columns: int) -> int:
    """Where the outputs are the short side, the matrices of `interference` are as long as those of all sources."""
    return 8 * (many * rows) ** 2 if rows < columns else (8 + 6 * many) * columns**2


def _of_the_inputs(many: int, rows: int, columns: int) -> int:
    del many, rows
    return 4 * columns**2


def _of_any_kind(many: int, rows: int, columns: int) -> int:
    return 8 * (many * min(rows, columns)) ** 2 + 4 * columns**2


CHUNKED = Taken(4, 12, _no_squares)
"""Any method with a chunked form, where it gets whole tensors all the same: on a device."""

WHOLE: Mapping[str, Taken] = {
    "iso-c": Taken(2, 8, _of_the_sum),
    "tsv": Taken(2, 8, _of_every_source),
    "optmerge": Taken(2, 8, _of_all_pairs),
    "wudi": Taken(2, 22, _of_the_inputs),
    "wudi closed": Taken(2, 8, _of_all_pairs),
}

UNKNOWN = Taken(4, 12, _of_any_kind)


def work_bytes(segment: Segment, shape: tuple[int, ...]) -> int:
    """Bytes that merging a whole tensor takes at most, inputs in float32 included.

    Args:
        segment: Its rows.
        shape: Their shape.
    """
    many, taken = len(segment.contributions), _taken(segment.method, segment.parameters)
    floats = math.prod(shape) * (taken.per_source * many + taken.beside)
    return 4 * floats + (8 * taken.squares(many, *shape) if len(shape) == 2 else 0)


def _taken(name: str, parameters: Mapping[str, Any]) -> Taken:
    if _takes_whole_tensors(name):
        solver = f" {parameters['solver']}" if parameters.get("solver") == "closed" else ""
        return WHOLE.get(name + solver, UNKNOWN)
    return CHUNKED


def held_bytes(job: TensorJob, segment: Segment) -> int:
    """Bytes of a segment's inputs, float32 where an adapter is folded, and of its result."""
    elements = (segment.stop - segment.start) * job.row_elements
    bits = sum(DTYPE_BITS["F32" if c.low_rank else c.entry.dtype] for c in segment.inputs) + DTYPE_BITS[job.dtype]
    return elements * bits // 8


def peak_memory(jobs: Sequence[TensorJob], *, threads: int) -> int:
    """Bytes that a run on the CPU takes: the largest jobs at the same time, one a thread, over what it needs anyway.

    Args:
        jobs: All jobs.
        threads: Threads that run them.
    """
    scratch = sorted((_scratch(job, s) for job in jobs for s in job.segments), reverse=True)
    return RUNTIME_MEMORY + sum(scratch[:threads])


def _scratch(job: TensorJob, segment: Segment) -> int:
    total = (segment.stop - segment.start) * job.row_elements
    if segment.action in ("copied", "created"):
        return COPY_MEMORY + (min(total, CHUNK) * DRAW_BYTES if segment.parameters else 0)
    raw = sum(DTYPE_BITS[c.entry.dtype] for c in segment.inputs) // 8 + DTYPE_BITS[job.dtype] // 8
    folded = sum(8 for c in segment.inputs if c.low_rank is not None)
    if segment.action == "merged" and _takes_whole_tensors(segment.method):
        return total * (raw + folded) + _whole(segment, job.shape_of(segment))
    step = CHUNK if not folded else math.ceil(CHUNK / max(job.row_elements, 1)) * job.row_elements
    return min(total, step) * (raw + folded) + COUNTERS_PER_INPUT * len(segment.inputs)


def _takes_whole_tensors(name: str) -> bool:
    return name.startswith(MERGEKIT_PREFIX) or find_method(name).program is None


def _whole(segment: Segment, shape: tuple[int, ...]) -> int:
    if segment.method.startswith(MERGEKIT_PREFIX):
        return 4 * math.prod(shape) * (len(segment.inputs) + MERGEKIT_COPIES)
    return work_bytes(segment, shape)
