"""Estimates the memory of a merge from headers, for ``plan`` and for devices.

A method with a chunked form needs a few chunks. All others need whole tensors in float32, and methods on singular
vectors also need square float64 matrices, which are soon larger than the tensors. The numbers here are upper bounds of
measured ones.
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
"""Bytes of Python, numpy, the kernels and everything else that a merge loads; measured."""

COPY_MEMORY = 2 * 2**20
"""Bytes of the buffers of a copy."""

DRAW_BYTES = 48
"""Bytes for each element of a new tensor while its initial values are drawn."""

COUNTERS_PER_INPUT = 2 * 2**20
"""Bytes of the counters that find a rank; see ``methods.core.select``."""

MERGEKIT_COPIES = 4
"""Number of float32 copies of the output that mergekit's methods need besides their inputs on the CPU."""


@dataclass(frozen=True)
class WorkingSet:
    """Memory of a method at its peak.

    Args:
        per_source: Number of float32 copies of the tensor for every source.
        beside: Number of further float32 copies, including base and result.
        squares: Function of (sources, rows, columns) to the elements of its square float64 matrices.
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
    """Returns the elements for ``interference``: when rows are the short side, the matrices span all sources."""
    return 8 * (many * rows) ** 2 if rows < columns else (8 + 6 * many) * columns**2


def _of_any_side(many: int, rows: int, columns: int) -> int:
    """Returns the elements for ``ssam``: squares of all sources' short sides, or one of the long side."""
    short, long = min(rows, columns), max(rows, columns)
    return 6 * (many * short) ** 2 if many * short <= long else 4 * short**2 + 6 * long**2


def _of_the_inputs(many: int, rows: int, columns: int) -> int:
    del many, rows
    return 4 * columns**2


def _of_any_kind(many: int, rows: int, columns: int) -> int:
    return 8 * (many * min(rows, columns)) ** 2 + 4 * columns**2


CHUNKED = WorkingSet(4, 12, _no_squares)
"""Any method with a chunked form, when it gets whole tensors: on a device."""

WHOLE: Mapping[str, WorkingSet] = {
    "iso-c": WorkingSet(2, 8, _of_the_sum),
    "tsv": WorkingSet(2, 8, _of_every_source),
    "optmerge": WorkingSet(2, 8, _of_all_pairs),
    "wudi": WorkingSet(2, 22, _of_the_inputs),
    "wudi closed": WorkingSet(2, 8, _of_all_pairs),
    "ssam": WorkingSet(2, 8, _of_any_side),
    "swudi": WorkingSet(2, 8, _of_all_pairs),
    "aswudi": WorkingSet(2, 8, _of_all_pairs),
}

UNKNOWN = WorkingSet(4, 12, _of_any_kind)


def work_bytes(segment: Segment, shape: tuple[int, ...]) -> int:
    """Returns an upper bound of the memory for merging a whole tensor, in bytes, including float32 inputs.

    Args:
        segment: Segment of the tensor.
        shape: Shape of the segment.
    """
    many, needs = len(segment.contributions), _working_set(segment.method, segment.parameters)
    floats = math.prod(shape) * (needs.per_source * many + needs.beside)
    return 4 * floats + (8 * needs.squares(many, *shape) if len(shape) == 2 else 0)


def _working_set(name: str, parameters: Mapping[str, Any]) -> WorkingSet:
    if _takes_whole_tensors(name):
        solver = f" {parameters['solver']}" if parameters.get("solver") == "closed" else ""
        return WHOLE.get(name + solver, UNKNOWN)
    return CHUNKED


def held_bytes(job: TensorJob, segment: Segment) -> int:
    """Returns the bytes of a segment's inputs (float32 where an adapter is folded) and of its result."""
    elements = (segment.stop - segment.start) * job.row_elements
    bits = sum(DTYPE_BITS["F32" if c.low_rank else c.entry.dtype] for c in segment.inputs) + DTYPE_BITS[job.dtype]
    return elements * bits // 8


def peak_memory(jobs: Sequence[TensorJob], *, threads: int) -> int:
    """Estimates the memory of a run on the CPU, in bytes: the largest jobs at the same time, one for each thread.

    Args:
        jobs: All jobs.
        threads: Number of threads.
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
