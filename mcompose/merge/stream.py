"""One tensor from its sources to its place in the output, in chunks, on one thread.

The idea: widen a chunk of every source to float32 in scratch memory that is reused for the whole run, let the method's
program combine them, round once, hash, and write the chunk to its final place. Chunks go in element order and their
size is fixed, so the bytes depend on the job alone: not on the thread, not on how many there are. Reads and writes are
positional, so that all threads share the open files.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from mcompose.checkpoint.codec import decode, raw_dtype
from mcompose.checkpoint.files import TensorFiles
from mcompose.checkpoint.tensor import DTYPE_BITS
from mcompose.errors import CompositionError, NumericsError
from mcompose.merge.job import Contribution, Segment, TensorJob
from mcompose.merge.program import Convert, program_for
from mcompose.merge.survey import Surveys
from mcompose.methods import kernels
from mcompose.methods.method import Program

if TYPE_CHECKING:
    from mcompose.checkpoint import LowRank

__all__ = ["CHUNK", "Cancelled", "JobStream", "Scratch", "Write"]

CHUNK = 1 << 17
"""Elements of one chunk: 512 KiB of float32 per source, which stays in the cache from widening to writing."""

COPY_BLOCK = 1 << 20
"""Bytes of one block of a copy."""

NO_SURVEYS = Surveys()

_WIDEN: dict[str, tuple[Callable[[np.ndarray, np.ndarray], int], type]] = {
    "BF16": (kernels.widen_bf16, np.uint16),
    "F16": (kernels.widen_f16, np.uint16),
    "F64": (kernels.widen_f64, np.float64),
}
"""File dtype to the kernel that makes float32 of it (and counts what is not finite), and the type that it reads."""

Write = Callable[[int, memoryview], None]
"""Writes bytes at an offset from the tensor's first byte."""


class Cancelled(BaseException):
    """Another thread failed, or the user interrupted: leave the tensor unfinished."""


class Scratch:
    """Arrays by name that only ever grow; one per thread."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, dtype: np.dtype | type, count: int) -> np.ndarray:
        """An array of ``count`` elements; its content is what the last user left."""
        nbytes = count * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].view(dtype)


@dataclass
class JobStream:
    """Runs jobs on one thread.

    Args:
        files: The open inputs, shared by all threads.
        cancelled: Set when the run is to stop; looked at before every chunk.
        advance: Told the output bytes that were just written.
        check_finite: Whether numbers that are not finite are an error.
    """

    files: TensorFiles
    cancelled: threading.Event
    advance: Callable[[int], None]
    check_finite: bool = True
    scratch: Scratch = field(default_factory=Scratch)

    def run(self, job: TensorJob, write: Write, *, surveys: Surveys = NO_SURVEYS) -> str:
        """Makes one tensor.

        Args:
            job: The job.
            write: Where its bytes go.
            surveys: What whole-model methods have learnt.

        Returns:
            ``xxh3:<hex>`` of the bytes.

        Raises:
            NumericsError: A source or the result is not finite.
            CompositionError: Tensors that must be equal are not.
        """
        digest = xxhash.xxh3_128()
        position = 0

        def emit(block: memoryview) -> None:
            nonlocal position
            digest.update(block)
            write(position, block)
            position += len(block)
            self.advance(len(block))

        for segment in job.segments:
            if segment.action == "copied":
                self._copy(job, segment, emit)
            elif segment.action == "created":
                self._create(job, segment, emit)
            else:
                self._combine(job, segment, emit, program_for(job, segment, survey=surveys.of_segment(segment)))
        if position != job.nbytes:
            raise NumericsError(f"'{job.name}' came out {position} bytes long and not {job.nbytes}.")
        return f"xxh3:{digest.hexdigest()}"

    def _blocks(self, total: int, step: int) -> Iterator[tuple[int, int]]:
        for start in range(0, total, step):
            if self.cancelled.is_set():
                raise Cancelled
            yield start, min(step, total - start)

    def _read(self, contribution: Contribution, target: np.ndarray, start: int) -> None:
        """Fills an array with the bytes from ``start`` of the contribution's tensor on."""
        self.files.read_into(contribution.entry, target.view(np.uint8).data, start=start)

    def _create(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None]) -> None:
        zeros = np.zeros(COPY_BLOCK, np.uint8)
        for _, count in self._blocks(_byte_span(job, segment)[1], COPY_BLOCK):
            emit(zeros[:count].data)

    def _copy(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None]) -> None:
        """Copies rows bit for bit; every further contribution must hold the same bits."""
        first, *others = segment.contributions
        _, total = _byte_span(job, segment)
        starts = [_first_byte(c, segment, job) for c in segment.contributions]
        for start, count in self._blocks(total, COPY_BLOCK):
            block = self.scratch.array("copy", np.uint8, count)
            self._read(first, block, starts[0] + start)
            for other, offset in zip(others, starts[1:], strict=True):
                twin = self.scratch.array("copy-twin", np.uint8, count)
                self._read(other, twin, offset + start)
                if not np.array_equal(block, twin):
                    raise CompositionError(
                        f"'{job.name}' is {job.dtype}, which cannot be merged, and differs between "
                        f"'{first.source}' and '{other.source}'.",
                        hint="Use checkpoints in bfloat16.",
                    )
            if self.check_finite:
                self._check_copied(first, block, dtype=job.dtype, start=starts[0] + start)
            emit(block.data)

    def _check_copied(self, contribution: Contribution, block: np.ndarray, *, dtype: str, start: int) -> None:
        """Refuses NaN in copied weights. An infinity passes: a copied mask may hold it, and copies are exact."""
        if dtype == "F32":
            values, itemsize = block.view(np.float32), 4
            bad = kernels.count_nonfinite(values)
        elif dtype in _WIDEN:
            widen, bits = _WIDEN[dtype]
            itemsize = np.dtype(bits).itemsize
            values = self.scratch.array("copy-wide", np.float32, block.size // itemsize)
            bad = widen(block.view(bits), values)
        else:
            return
        if bad and np.isnan(values).any():
            raise _not_finite(contribution, start // itemsize + int(np.flatnonzero(np.isnan(values))[0]))

    def _combine(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None], program: Program) -> None:
        total = (segment.stop - segment.start) * job.row_elements
        step = chunk_elements(program, segment, row=job.row_elements, total=total)
        for index in range(program.passes):
            for start, count in self._blocks(total, step):
                sources, base = self._load_all(segment, job, start, count)
                program.measure(index, start, sources, base)
        for start, count in self._blocks(total, step):
            sources, base = self._load_all(segment, job, start, count)
            result = self.scratch.array("result", np.float32, count)
            program.combine(start, sources, base, result)
            emit(self._narrow(job, segment, result, start=start))

    def measure(self, job: TensorJob, segment: Segment, visit: Callable[..., None]) -> None:
        """Feeds the chunks of one segment to ``visit(start, sources, base)``, writing nothing."""
        total = (segment.stop - segment.start) * job.row_elements
        step = chunk_elements(Convert(), segment, row=job.row_elements, total=total)
        for start, count in self._blocks(total, step):
            visit(start, *self._load_all(segment, job, start, count))

    def _load_all(
        self, segment: Segment, job: TensorJob, start: int, count: int
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        arrays = [
            self._load(contribution, f"input-{number}", segment, job, span=(start, count))
            for number, contribution in enumerate(segment.inputs)
        ]
        return (arrays, None) if segment.base is None else (arrays[:-1], arrays[-1])

    def _load(
        self, contribution: Contribution, slot: str, segment: Segment, job: TensorJob, *, span: tuple[int, int]
    ) -> np.ndarray:
        """One chunk of one input as float32, adapter folded."""
        start, count = span
        dtype = contribution.entry.dtype
        values = self.scratch.array(slot, np.float32, count)
        first = _first_element(contribution, segment, job.row_elements) + start
        if dtype == "F32":
            self._read(contribution, values, first * 4)
            bad = kernels.count_nonfinite(values) if self.check_finite else 0
        else:
            widen, bits = _WIDEN[dtype]
            raw = self.scratch.array("raw", bits, count)
            self._read(contribution, raw, first * raw.itemsize)
            bad = widen(raw, values)
        if bad and self.check_finite:
            raise _not_finite(contribution, first + int(np.flatnonzero(~np.isfinite(values))[0]))
        if contribution.low_rank is not None:
            return _folded(contribution.low_rank, values, first=first, job=job)
        return values

    def _narrow(self, job: TensorJob, segment: Segment, values: np.ndarray, *, start: int) -> memoryview:
        """Rounds one chunk of the result, which starts at element ``start`` of the segment, to the output's dtype."""
        if job.dtype == "F32":
            raw, bad = values, kernels.count_nonfinite(values) if self.check_finite else 0
        elif job.dtype == "F64":
            raw = self.scratch.array("narrow", np.float64, values.size)
            raw[:] = values
            bad = kernels.count_nonfinite(values) if self.check_finite else 0
        else:
            raw = self.scratch.array("narrow", np.uint16, values.size)
            bad = (kernels.narrow_bf16 if job.dtype == "BF16" else kernels.narrow_f16)(values, raw)
        if bad and self.check_finite:
            index = int(np.flatnonzero(~np.isfinite(decode(raw.view(raw_dtype(job.dtype)), job.dtype)))[0])
            raise _overflow(job, segment, values[index], element=start + index)
        return raw.view(np.uint8).data


def chunk_elements(program: Program, segment: Segment, *, row: int, total: int) -> int:
    """Elements of one chunk: ``CHUNK`` rounded to what the program and the adapters need.

    Args:
        program: The method for this tensor.
        segment: The rows.
        row: Elements in a row.
        total: Elements in the segment; a program that needs the whole tensor gets them all.
    """
    multiple = program.chunk_multiple
    if any(c.low_rank is not None for c in segment.inputs):
        multiple = math.lcm(multiple, row) if multiple else 0
    if multiple == 0:
        return max(total, 1)
    return max(CHUNK // multiple, 1) * multiple


def _folded(low_rank: LowRank, values: np.ndarray, *, first: int, job: TensorJob) -> np.ndarray:
    """Whole rows of a weight with its adapter."""
    if values.size == 0:
        return values
    rows = values.reshape(values.size // job.row_elements, *job.shape[1:])
    start = first // job.row_elements
    return low_rank.apply(rows, (start, start + len(rows))).reshape(-1)


def _byte_span(job: TensorJob, segment: Segment) -> tuple[int, int]:
    """First byte and bytes of a segment in the output."""
    if segment.start == 0 and segment.stop == job.rows:
        return 0, job.nbytes
    row = job.row_elements * DTYPE_BITS[job.dtype] // 8
    return segment.start * row, (segment.stop - segment.start) * row


def _first_element(contribution: Contribution, segment: Segment, row: int) -> int:
    first_row = segment.start if contribution.first_row is None else contribution.first_row
    return first_row * row


def _first_byte(contribution: Contribution, segment: Segment, job: TensorJob) -> int:
    return _first_element(contribution, segment, job.row_elements) * DTYPE_BITS[job.dtype] // 8


def _overflow(job: TensorJob, segment: Segment, value: np.float32, *, element: int) -> NumericsError:
    place = segment.start * job.row_elements + element
    return NumericsError(
        f"'{job.name}' is not finite at element {place} after {segment.method or 'the conversion'} "
        f"({value:g} in {job.dtype}).",
        hint="Check the method's weights and parameters, or write another dtype.",
    )


def _not_finite(contribution: Contribution, index: int) -> NumericsError:
    return NumericsError(
        f"Tensor '{contribution.entry.key}' of source '{contribution.source}' is not finite at element {index}.",
        hint="The checkpoint is broken; fetch it again or leave the source out.",
    )
