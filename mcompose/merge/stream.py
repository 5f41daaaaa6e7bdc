"""Makes one tensor from its sources and writes it to its place in the output, in chunks, on one thread.

A chunk of every source is read into scratch memory that is reused for the whole run; the method's program makes the
result's chunk in one pass; both are hashed, and the result is written to its final place. Chunks follow the order of
the elements and have a fixed size, so the bytes depend only on the job, not on the threads. Reads and writes are
positional, so that all threads share the open files.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mcompose.anatomy import ORIGIN
from mcompose.checkpoint import DTYPE_BITS, MERGEABLE_DTYPES, TensorDigest, TensorFiles, decode, encode, raw_dtype
from mcompose.errors import CompositionError, NumericsError
from mcompose.merge.clock import Clock
from mcompose.merge.initial_values import RowMean, initial_values
from mcompose.merge.job import Contribution, Segment, TensorJob
from mcompose.merge.program import Convert, program_for
from mcompose.merge.survey import Surveys
from mcompose.methods import Program, kernels

__all__ = ["CHUNK", "Cancelled", "JobStream", "Made", "Scratch", "Write"]

CHUNK = 1 << 20
"""Elements of one chunk: 2 MiB of bfloat16 per source. Larger chunks need memory, smaller ones switch the GIL often."""

COPY_BLOCK = 1 << 20
"""Size of one block of a copy, in bytes."""

NO_SURVEYS = Surveys()

LARGEST = {"BF16": "3.39e38", "F16": "65504", "F32": "3.4e38", "F64": "3.4e38, where its arithmetic does"}
"""Dtype to the largest number of a result, for messages."""

Write = Callable[[int, memoryview], None]
"""Writes bytes at an offset from the tensor's first byte."""


@dataclass(frozen=True)
class Made:
    """A finished tensor.

    Args:
        digest: ``xxh3:<hex>`` of its bytes.
        inputs: Digests of the bytes of every input, contributions and then the base, segment by segment; without
            copied segments, whose bytes are the output's.
    """

    digest: str
    inputs: tuple[str, ...]


class Cancelled(BaseException):
    """Stops a job when another thread failed or the user interrupted the run."""


def _plain_memory(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


class Scratch:
    """Scratch arrays by name, which only grow; one object for each thread.

    Args:
        allocate: Function from a number of bytes to memory.
    """

    def __init__(self, allocate: Callable[[int], np.ndarray] = _plain_memory) -> None:
        self._allocate = allocate
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, dtype: np.dtype | type, count: int) -> np.ndarray:
        """Returns an array of ``count`` elements with undefined content."""
        nbytes = count * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = self._allocate(nbytes)
        return buffer[:nbytes].view(dtype)


@dataclass
class JobStream:
    """Runs jobs on one thread.

    Args:
        files: The open inputs, shared by all threads.
        cancelled: Event that stops the run; checked before every chunk.
        advance: Receives the number of output bytes just written.
        check_finite: Whether numbers that are not finite are an error.
        clock: Receives the time by stage.
    """

    files: TensorFiles
    cancelled: threading.Event
    advance: Callable[[int], None]
    check_finite: bool = True
    clock: Clock = field(default_factory=Clock)
    scratch: Scratch = field(default_factory=Scratch)
    _inputs: list[TensorDigest] = field(default_factory=list[TensorDigest])

    def run(self, job: TensorJob, write: Write, *, surveys: Surveys = NO_SURVEYS) -> Made:
        """Makes one tensor.

        Args:
            job: The job.
            write: Writes bytes at an offset of the tensor.
            surveys: Surveys of whole-model methods.

        Returns:
            Digests of the written and the read bytes.

        Raises:
            NumericsError: A source or the result is not finite.
            CompositionError: Tensors that must be equal are not.
        """
        digest = TensorDigest()
        position = 0
        self._inputs.clear()

        def emit(block: memoryview) -> None:
            nonlocal position
            with self.clock.hash:
                digest.update(block)
            with self.clock.write:
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
            raise NumericsError(f"'{job.name}' has {position} bytes instead of {job.nbytes}.")
        return Made(digest.text(), tuple(one.text() for one in self._inputs))

    def _blocks(self, total: int, step: int) -> Iterator[tuple[int, int]]:
        for start in range(0, total, step):
            if self.cancelled.is_set():
                raise Cancelled
            yield start, min(step, total - start)

    def _read(self, contribution: Contribution, target: np.ndarray, start: int) -> None:
        """Fills an array with the bytes from ``start`` of the contribution's tensor on."""
        with self.clock.read:
            self.files.read_into(contribution.entry, target.view(np.uint8).data, start=start)

    def _create(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None]) -> None:
        if "transposed" in segment.parameters:
            emit(self._turned(job, segment).view(np.uint8).data)
            return
        if segment.parameters:
            total = (segment.stop - segment.start) * job.row_elements
            row = self._mean_row(segment) if segment.contributions else None
            for start, count in self._blocks(total, CHUNK):
                with self.clock.compute:
                    values = initial_values(job, segment, (start, count), row=row)
                emit(values.view(np.uint8).data)
            return
        zeros = np.zeros(COPY_BLOCK, np.uint8)
        for _, count in self._blocks(_byte_span(job, segment)[1], COPY_BLOCK):
            emit(zeros[:count].data)

    def _turned(self, job: TensorJob, segment: Segment) -> np.ndarray:
        """Returns a small matrix turned over and scaled, in one piece; its bytes are hashed as an input."""
        matrix, digest = segment.contributions[0], TensorDigest()
        self._inputs.append(digest)
        raw = np.empty(math.prod(matrix.entry.shape), raw_dtype(matrix.entry.dtype))
        self._read(matrix, raw, 0)
        with self.clock.hash:
            digest.update(raw.view(np.uint8).data)
        with self.clock.compute:
            values = decode(raw, matrix.entry.dtype).astype(np.float32).reshape(matrix.entry.shape)
            if self.check_finite and not np.isfinite(values).all():
                raise _not_finite(matrix, int(np.flatnonzero(~np.isfinite(values))[0]))
            turned = values.T * np.float32(segment.parameters["transposed"])
            return encode(np.ascontiguousarray(turned).reshape(-1), job.dtype)

    def _mean_row(self, segment: Segment) -> np.ndarray:
        """Returns the mean of a table's first rows, added in order; the table's bytes are hashed as an input."""
        table, digest = segment.contributions[0], TensorDigest()
        self._inputs.append(digest)
        width = math.prod(table.entry.shape[1:])
        whole = RowMean(width)
        step = max(CHUNK // width, 1) * width
        for start, count in self._blocks(segment.parameters["rows"] * width, step):
            raw = self.scratch.array("input-0", raw_dtype(table.entry.dtype), count)
            self._read(table, raw, start * raw.itemsize)
            with self.clock.hash:
                digest.update(raw.view(np.uint8).data)
            with self.clock.compute:
                whole.add(decode(raw, table.entry.dtype))
        return whole.value

    def _copy(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None]) -> None:
        """Copies rows bit for bit; every further contribution must have the same bits."""
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
                    raise _differing(job, first, other)
            if self.check_finite:
                self._check_copied(first, block, dtype=job.dtype, start=starts[0] + start)
            emit(block.data)

    def _check_copied(self, contribution: Contribution, block: np.ndarray, *, dtype: str, start: int) -> None:
        """Refuses NaN in copied weights. Infinities are allowed: a copied mask may contain them."""
        if dtype not in MERGEABLE_DTYPES:
            return
        values = block.view(raw_dtype(dtype))
        with self.clock.compute:
            broken = kernels.count_nan(values)
        if broken:
            element = int(np.flatnonzero(np.isnan(decode(values, dtype)))[0])
            raise _not_finite(contribution, start // values.itemsize + element)

    def _combine(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None], program: Program) -> None:
        total = (segment.stop - segment.start) * job.row_elements
        step = chunk_elements(program, segment, row=job.row_elements, total=total)
        digests = [TensorDigest() for _ in segment.inputs]
        self._inputs += digests
        index = 0
        while index < program.passes:
            for span in self._blocks(total, step):
                sources, base = self._load_all(segment, job, span, digests=digests if index == 0 else None)
                with self.clock.compute:
                    fine = program.measure(index, span[0], sources, base)
                if not fine and self.check_finite:
                    raise self._broken(job, segment, None, span=span)
            index += 1
        for span in self._blocks(total, step):
            sources, base = self._load_all(segment, job, span, digests=digests if index == 0 else None)
            result = self.scratch.array("result", raw_dtype(job.dtype), span[1])
            with self.clock.compute:
                bad = program.combine(span[0], sources, base, result)
            if bad and self.check_finite:
                raise self._broken(job, segment, result, span=span)
            emit(result.view(np.uint8).data)

    def measure(self, job: TensorJob, segment: Segment, visit: Callable[..., None]) -> None:
        """Passes the chunks of one segment to ``visit(start, sources, base)``, without writing."""
        total = (segment.stop - segment.start) * job.row_elements
        step = chunk_elements(Convert(), segment, row=job.row_elements, total=total)
        for start, count in self._blocks(total, step):
            sources, base = self._load_all(segment, job, (start, count), digests=None)
            with self.clock.compute:
                visit(start, sources, base)

    def _load_all(
        self, segment: Segment, job: TensorJob, span: tuple[int, int], *, digests: list[TensorDigest] | None
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Reads one chunk of every input, raw; float32 where an adapter is folded."""
        arrays: list[np.ndarray] = []
        for number, contribution in enumerate(segment.inputs):
            raw = self._load(contribution, f"input-{number}", segment, job, span=span)
            if digests is not None:
                with self.clock.hash:
                    digests[number].update(raw.view(np.uint8).data)
            arrays.append(raw if contribution.low_rank is None else self._folded(contribution, raw, segment, job, span))
        return (arrays, None) if segment.base is None else (arrays[:-1], arrays[-1])

    def _load(
        self, contribution: Contribution, slot: str, segment: Segment, job: TensorJob, *, span: tuple[int, int]
    ) -> np.ndarray:
        raw = self.scratch.array(slot, raw_dtype(contribution.entry.dtype), span[1])
        self._fill(raw, contribution, segment, job, start=span[0])
        return raw

    def _fill(
        self, raw: np.ndarray, contribution: Contribution, segment: Segment, job: TensorJob, *, start: int
    ) -> None:
        """Reads elements from element ``start`` of the segment."""
        first = _first_element(contribution, segment, job.row_elements) + start
        self._read(contribution, raw, first * raw.itemsize)

    def _folded(
        self, contribution: Contribution, raw: np.ndarray, segment: Segment, job: TensorJob, span: tuple[int, int]
    ) -> np.ndarray:
        """Returns whole rows of a weight with its adapter."""
        assert contribution.low_rank is not None
        if raw.size == 0:
            return raw
        with self.clock.compute:
            values = np.empty(raw.size, np.float32)
            kernels.convert(raw, values)
            first = (_first_element(contribution, segment, job.row_elements) + span[0]) // job.row_elements
            rows = values.reshape(values.size // job.row_elements, *job.shape[1:])
            with np.errstate(over="ignore", invalid="ignore"):  # checked with the result, and reported by name
                return contribution.low_rank.apply(rows, (first, first + len(rows))).reshape(-1)

    def _broken(
        self, job: TensorJob, segment: Segment, result: np.ndarray | None, *, span: tuple[int, int]
    ) -> NumericsError:
        """Returns the error for a chunk that is not finite and starts at element ``span[0]`` of the segment."""
        for number, contribution in enumerate(segment.inputs):
            raw = self._load(contribution, f"input-{number}", segment, job, span=span)
            first = _first_element(contribution, segment, job.row_elements) + span[0]
            broken = np.flatnonzero(~np.isfinite(decode(raw, contribution.entry.dtype)))
            if broken.size:
                return _not_finite(contribution, first + int(broken[0]))
            if contribution.low_rank is not None:
                folded = self._folded(contribution, raw, segment, job, span)
                broken = np.flatnonzero(~np.isfinite(folded))
                if broken.size:
                    return _not_finite(contribution, first + int(broken[0]), folded=True)
        index = 0 if result is None else int(np.flatnonzero(~np.isfinite(decode(result, job.dtype)))[0])
        return _overflow(job, segment, element=span[0] + index)


def chunk_elements(program: Program, segment: Segment, *, row: int, total: int) -> int:
    """Returns the elements of one chunk: ``CHUNK`` rounded down to a multiple that program and adapters need.

    Args:
        program: Program of the method for this tensor.
        segment: The segment.
        row: Number of elements in a row.
        total: Number of elements in the segment; a program that needs the whole tensor gets them all.
    """
    multiple = program.chunk_multiple
    if any(c.low_rank is not None for c in segment.inputs):
        multiple = math.lcm(multiple, row) if multiple else 0
    if multiple == 0:
        return max(total, 1)
    return max(CHUNK // multiple, 1) * multiple


def _byte_span(job: TensorJob, segment: Segment) -> tuple[int, int]:
    """Returns first byte and number of bytes of a segment in the output."""
    if segment.start == 0 and segment.stop == job.rows:
        return 0, job.nbytes
    row = job.row_elements * DTYPE_BITS[job.dtype] // 8
    return segment.start * row, (segment.stop - segment.start) * row


def _first_element(contribution: Contribution, segment: Segment, row: int) -> int:
    first_row = segment.start if contribution.first_row is None else contribution.first_row
    return first_row * row


def _first_byte(contribution: Contribution, segment: Segment, job: TensorJob) -> int:
    return _first_element(contribution, segment, job.row_elements) * DTYPE_BITS[job.dtype] // 8


def _differing(job: TensorJob, first: Contribution, other: Contribution) -> CompositionError:
    """Returns the error for rows that must be equal in all sources and are not."""
    if job.part == ORIGIN:
        return CompositionError(
            f"The low-rank groups of '{first.source}' and '{other.source}' are added to different tensors: "
            f"'{first.entry.key}' and '{other.entry.key}'.",
            hint="Write `compose: {groups: dense}`: each group then becomes a full copy of its tensors.",
        )
    return CompositionError(
        f"'{job.name}' is {job.dtype}, which cannot be merged, and differs between "
        f"'{first.source}' and '{other.source}'.",
        hint="Use checkpoints in bfloat16.",
    )


def _overflow(job: TensorJob, segment: Segment, *, element: int) -> NumericsError:
    return NumericsError(
        f"'{job.name}' is not finite at element {segment.start * job.row_elements + element} after "
        f"{segment.method or 'the conversion'}: the limit of {job.dtype} is {LARGEST[job.dtype]}.",
        hint="Check the method's weights and parameters, or choose another 'merge.dtype'.",
    )


def _not_finite(contribution: Contribution, index: int, *, folded: bool = False) -> NumericsError:
    when = " after its adapter is folded" if folded else ""
    return NumericsError(
        f"Tensor '{contribution.entry.key}' of source '{contribution.source}' is not finite at element {index}{when}.",
        hint=f"The {'adapter' if folded else 'checkpoint'} is broken: fetch it again, or leave the source out.",
    )
