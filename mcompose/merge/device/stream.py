"""The same jobs on a torch device.

The idea: the engine's threads stay as they are, one tensor each, and take turns at the device. While it computes one
thread's tensor, the others read and write theirs, and their copies run beside the arithmetic. A copy goes through two
host buffers in turn, pinned for CUDA: one is read into, or hashed and written, while the other travels. Weights travel
as they are stored (bfloat16 as bfloat16), are widened on the device, merged in float32 by the method's own function and
rounded there once. Adapters are folded on the host, in float32, as without a device.

What goes where follows from the plan and the device, never from the moment (`device_memory`), and no record says it:

- Methods that treat every element alike (linear, naivemc, weight-mix, task_arithmetic, passthrough) go in slices, so
  that an embedding of any size fits. All others need whole tensors; one that is too large for the device's memory is
  merged by the kernels of the CPU.
- So is everything that is no merge (copies, casts, folds) and every method that surveys the whole model.
- A device without float64 (MPS) gets the methods in slices only, and no float64 tensors: sums of squares and singular
  vectors are float64 in every method, and that sorting is stable there was not seen.

Results agree with the kernels' to the last bit where both do the same float32 operations, otherwise nearly so: sums of
squares and singular vectors add up in another order. The path was run on the CPU (``torch:cpu``), as in the tests, and
never on CUDA or MPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mcompose.checkpoint import TensorDigest, raw_dtype
from mcompose.dtypes import FLOAT_NAMES
from mcompose.errors import McomposeError, NumericsError, RequestError, first_line
from mcompose.merge.catalogue import find_method
from mcompose.merge.device.copies import Queue, host_memory, open_queue
from mcompose.merge.device.memory import Accelerator
from mcompose.merge.job import Contribution, Segment, TensorJob
from mcompose.merge.memory import held_bytes, work_bytes
from mcompose.merge.program import call_whole, task_for
from mcompose.merge.stream import CHUNK, JobStream, Scratch
from mcompose.methods import Program, kernels

__all__ = ["DEVICE_THREADS", "TorchStream", "check_device", "torch_streams"]

DEVICE_THREADS = 4
"""Threads of a run on a device when nobody says: one computes, the others read, hash and write."""

SLICE = 1 << 21
"""Elements of a slice and of a copy: 4 MiB of bfloat16, long enough to fill the bus."""

TORCH_DTYPES = {code: getattr(torch, name) for code, name in FLOAT_NAMES.items()}


def check_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        RequestError: torch does not know the name, or cannot use the device here.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"Device '{name}' cannot be used: {first_line(error)}.", hint="Use '--device cpu'."
        ) from error
    return device


def torch_streams(name: str) -> Callable[..., TorchStream]:
    """What makes the streams of one run, which share a device.

    Args:
        name: The device as torch calls it.

    Raises:
        RequestError: It cannot be used.
    """
    return partial(TorchStream, accelerator=Accelerator.of(check_device(name)))


@dataclass
class TorchStream(JobStream):
    """Runs jobs on one thread, merging on a torch device.

    Args:
        accelerator: The device, shared by all threads.
        queue: This thread's copies.
        buffers: Host memory that they go through.
    """

    accelerator: Accelerator = field(kw_only=True)
    queue: Queue = field(init=False)
    buffers: Scratch = field(init=False)
    _marks: dict[str, Any] = field(init=False, default_factory=dict[str, Any])
    _second: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.queue = open_queue(self.accelerator.device)
        self.buffers = Scratch(partial(host_memory, self.accelerator.device))

    def _combine(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None], program: Program) -> None:
        total = (segment.stop - segment.start) * job.row_elements
        step, held = self._manner(job, segment, program, total)
        if step == 0:
            super()._combine(job, segment, emit, program)
            return
        digests = [TensorDigest() for _ in segment.inputs]
        self._inputs += digests
        shape = job.shape_of(segment) if step == total else (-1,)
        try:
            for span in self._blocks(total, step):
                with self.accelerator.room(held):
                    pairs = zip(segment.inputs, digests, strict=True)
                    inputs = [self._sent(one, digest, segment, job, span=span) for one, digest in pairs]
                    merged = self._merged(job, segment, inputs, shape, start=span[0])
                    del inputs
                    self._fetch(merged, job, emit)
        except torch.OutOfMemoryError as error:
            raise McomposeError(
                f"Device '{self.accelerator.device}' has no memory left for '{job.name}'.",
                hint="Stop what else uses it, or merge with '--device cpu'.",
            ) from error

    def _manner(self, job: TensorJob, segment: Segment, program: Program, total: int) -> tuple[int, int]:
        """Elements that go to the device at a time, 0 for none, and the bytes to reserve there."""
        if segment.action != "merged" or total == 0:
            return 0, 0
        method = find_method(segment.method)
        doubles = "F64" in (job.dtype, *(c.entry.dtype for c in segment.inputs))
        if method.whole_model or (doubles and not self.accelerator.has_doubles):
            return 0, 0
        if program.passes == 0 and program.chunk_multiple == 1 and not method.random:
            return min(total, _whole_rows(segment, job)), 0
        held = held_bytes(job, segment)
        work = work_bytes(segment, job.shape_of(segment))
        return (total, held) if self.accelerator.has_doubles and self.accelerator.fits(held=held, work=work) else (0, 0)

    def _sent(
        self, one: Contribution, digest: TensorDigest, segment: Segment, job: TensorJob, *, span: tuple[int, int]
    ) -> torch.Tensor:
        """One input on the device, flat and as stored; float32 where an adapter is folded."""
        dtype = one.entry.dtype if one.low_rank is None else "F32"
        sent = self.queue.empty(span[1], TORCH_DTYPES[dtype])
        for start, count in self._blocks(span[1], _whole_rows(segment, job)):
            slot = self._slot("up")
            buffer = self.buffers.array(slot, raw_dtype(dtype), count)
            raw = buffer if one.low_rank is None else self.scratch.array("raw", raw_dtype(one.entry.dtype), count)
            self._fill(raw, one, segment, job, start=span[0] + start)
            with self.clock.hash:
                digest.update(raw.view(np.uint8).data)
            if one.low_rank is not None:
                buffer[:] = self._folded(one, raw, segment, job, (span[0] + start, count))
            self._copy_through(slot, sent[start : start + count], _tensor(buffer, dtype))
        return sent

    def _merged(
        self, job: TensorJob, segment: Segment, inputs: Sequence[torch.Tensor], shape: tuple[int, ...], *, start: int
    ) -> torch.Tensor:
        """The result on the device, flat and rounded."""
        for slot in tuple(self._marks):
            self._await(slot)
        with self.accelerator.turn(), self.clock.compute:
            if self.check_finite and not _all_finite(inputs):
                raise self._refused(job, segment, inputs, start=start)
            values = [raw.float().reshape(shape) for raw in inputs]
            base = values.pop() if segment.base is not None else None
            merged = call_whole(find_method(segment.method), task_for(job, segment), values, base)
            del values, base
            result = merged.float().reshape(-1).to(TORCH_DTYPES[job.dtype])
            del merged
            if self.check_finite and not _all_finite([result]):
                raise self._refused(job, segment, [result], start=start)
            self.queue.after_arithmetic()
        return result

    def _fetch(self, merged: torch.Tensor, job: TensorJob, emit: Callable[[memoryview], None]) -> None:
        """Hands a result on, one piece while the next one travels."""
        waiting: tuple[str, np.ndarray] | None = None
        for start, count in self._blocks(merged.numel(), SLICE):
            slot = self._slot("down")
            buffer = self.buffers.array(slot, raw_dtype(job.dtype), count)
            self._copy_through(slot, _tensor(buffer, job.dtype), merged[start : start + count])
            if waiting is not None:
                self._hand_on(*waiting, emit)
            waiting = slot, buffer
        if waiting is not None:
            self._hand_on(*waiting, emit)

    def _hand_on(self, slot: str, buffer: np.ndarray, emit: Callable[[memoryview], None]) -> None:
        self._await(slot)
        emit(buffer.view(np.uint8).data)

    def _slot(self, way: str) -> str:
        """The name of the buffer whose turn it is, when its last copy is done."""
        self._second = not self._second
        slot = f"{way}-{int(self._second)}"
        self._await(slot)
        return slot

    def _await(self, slot: str) -> None:
        if slot in self._marks:
            with self.clock.compute:
                self.queue.wait(self._marks.pop(slot))

    def _copy_through(self, slot: str, target: torch.Tensor, source: torch.Tensor) -> None:
        with self.clock.compute:
            self.queue.copy(target, source)
            self._marks[slot] = self.queue.mark()

    def _refused(
        self, job: TensorJob, segment: Segment, tensors: Sequence[torch.Tensor], *, start: int
    ) -> NumericsError:
        """Why a span is not finite that starts at element ``start`` of the segment."""
        broken = [(_first_broken(tensor), tensor) for tensor in tensors if not _all_finite([tensor])]
        place, tensor = min(broken, key=lambda pair: pair[0])
        first = place // CHUNK * CHUNK
        values = tensor[first : first + CHUNK].float().cpu().numpy()
        rounded = np.empty(values.size, raw_dtype(job.dtype))
        kernels.convert(values, rounded)
        return self._broken(job, segment, rounded, span=(start + first, values.size))


def _whole_rows(segment: Segment, job: TensorJob) -> int:
    """Elements of a slice: whole rows where an adapter is folded."""
    if not any(c.low_rank is not None for c in segment.inputs):
        return SLICE
    return max(SLICE // max(job.row_elements, 1), 1) * job.row_elements


def _all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """A sum is finite only if all that it adds up is; where it is not, every element is looked at."""
    total = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum()
    return math.isfinite(float(total)) or all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _first_broken(tensor: torch.Tensor) -> int:
    return int(torch.isfinite(tensor).logical_not().nonzero()[0])


def _tensor(buffer: np.ndarray, dtype: str) -> torch.Tensor:
    """A buffer as torch sees it."""
    return torch.from_numpy(buffer.view(np.uint8)).view(TORCH_DTYPES[dtype])
