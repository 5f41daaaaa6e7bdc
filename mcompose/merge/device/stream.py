"""Runs jobs on a torch device.

The engine's threads work as on the CPU, one tensor each, and take turns at the device. While the device computes one
thread's tensor, the other threads read and write theirs, and their copies run in parallel to the arithmetic. Copies use
two host buffers alternately, pinned for CUDA: one is filled, or hashed and written, while the other is copied. Weights
are copied as stored (bfloat16 as bfloat16), widened on the device, merged in float32 by the method's function and
rounded once. Adapters are folded on the host, in float32, as without a device.

What is merged on the device depends only on the plan and the device (``memory.py``), never on free memory; the ledger
does not record it:

- Methods that treat all elements independently (linear, naivemc, weight-mix, task_arithmetic, passthrough) work in
  slices, so that an embedding of any size fits. All others need whole tensors; a tensor that is too large for the
  device's memory is merged by the CPU's kernels.
- Copies, casts, folds, and methods that survey the whole model also run on the CPU.
- A device without float64 (MPS) gets only methods in slices and no float64 tensors: all other methods compute sums of
  squares and singular vectors in float64, and whether sorting is stable there was not tested.

Results equal those of the kernels to the last bit where both do the same float32 operations; otherwise they are close,
because sums of squares and singular vectors are added in another order. The code was run on the CPU (``torch:cpu``), as
in the tests, and never on CUDA or MPS.
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
"""Default number of threads of a run on a device: one computes, the others read, hash and write."""

SLICE = 1 << 21
"""Elements of a slice and of a copy: 4 MiB of bfloat16, large enough for full bus speed."""

TORCH_DTYPES = {code: getattr(torch, name) for code, name in FLOAT_NAMES.items()}


def check_device(name: str) -> torch.device:
    """Returns the torch device of a name.

    Raises:
        RequestError: torch does not know the name, or cannot use the device on this machine.
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
    """Returns the factory of the streams of one run, which share a device.

    Args:
        name: Name of the device in torch.

    Raises:
        RequestError: The device cannot be used.
    """
    return partial(TorchStream, accelerator=Accelerator.of(check_device(name)))


@dataclass
class TorchStream(JobStream):
    """Runs jobs on one thread, merging on a torch device.

    Args:
        accelerator: The device, shared by all threads.
        queue: Queue of this thread's copies.
        buffers: Host memory for the copies.
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
        step, held = self._slice_size(job, segment, program, total)
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
                    inputs = [self._upload(one, digest, segment, job, span=span) for one, digest in pairs]
                    merged = self._merge(job, segment, inputs, shape, start=span[0])
                    del inputs
                    self._fetch(merged, job, emit)
        except torch.OutOfMemoryError as error:
            raise McomposeError(
                f"Device '{self.accelerator.device}' does not have enough free memory for '{job.name}'.",
                hint="Stop other programs that use it, or merge with '--device cpu'.",
            ) from error

    def _slice_size(self, job: TensorJob, segment: Segment, program: Program, total: int) -> tuple[int, int]:
        """Returns the elements to merge on the device at a time (0 for none), and the bytes to reserve there."""
        if segment.action != "merged" or total == 0:
            return 0, 0
        method = find_method(segment.method)
        needs_doubles = "F64" in (job.dtype, *(c.entry.dtype for c in segment.inputs))
        if method.whole_model or (needs_doubles and not self.accelerator.has_doubles):
            return 0, 0
        if program.passes == 0 and program.chunk_multiple == 1 and not method.random:
            return min(total, _whole_rows(segment, job)), 0
        held = held_bytes(job, segment)
        work = work_bytes(segment, job.shape_of(segment))
        return (total, held) if self.accelerator.has_doubles and self.accelerator.fits(held=held, work=work) else (0, 0)

    def _upload(
        self, one: Contribution, digest: TensorDigest, segment: Segment, job: TensorJob, *, span: tuple[int, int]
    ) -> torch.Tensor:
        """Copies one input to the device, flat and as stored; float32 where an adapter is folded."""
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

    def _merge(
        self, job: TensorJob, segment: Segment, inputs: Sequence[torch.Tensor], shape: tuple[int, ...], *, start: int
    ) -> torch.Tensor:
        """Merges on the device; returns the result flat and rounded."""
        for slot in tuple(self._marks):
            self._await(slot)
        with self.accelerator.turn(), self.clock.compute:
            if self.check_finite and not _all_finite(inputs):
                raise self._not_finite_error(job, segment, inputs, start=start)
            values = [raw.float().reshape(shape) for raw in inputs]
            base = values.pop() if segment.base is not None else None
            merged = call_whole(find_method(segment.method), task_for(job, segment), values, base)
            del values, base
            result = merged.float().reshape(-1).to(TORCH_DTYPES[job.dtype])
            del merged
            if self.check_finite and not _all_finite([result]):
                raise self._not_finite_error(job, segment, [result], start=start)
            self.queue.after_arithmetic()
        return result

    def _fetch(self, merged: torch.Tensor, job: TensorJob, emit: Callable[[memoryview], None]) -> None:
        """Copies a result to the host and emits it, one piece while the next one is copied."""
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
        """Returns the name of the next buffer, after its last copy is finished."""
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

    def _not_finite_error(
        self, job: TensorJob, segment: Segment, tensors: Sequence[torch.Tensor], *, start: int
    ) -> NumericsError:
        """Returns the error for a span that is not finite and starts at element ``start`` of the segment."""
        broken = [(_first_broken(tensor), tensor) for tensor in tensors if not _all_finite([tensor])]
        place, tensor = min(broken, key=lambda pair: pair[0])
        first = place // CHUNK * CHUNK
        values = tensor[first : first + CHUNK].float().cpu().numpy()
        rounded = np.empty(values.size, raw_dtype(job.dtype))
        kernels.convert(values, rounded)
        return self._broken(job, segment, rounded, span=(start + first, values.size))


def _whole_rows(segment: Segment, job: TensorJob) -> int:
    """Returns the elements of a slice: whole rows where an adapter is folded."""
    if not any(c.low_rank is not None for c in segment.inputs):
        return SLICE
    return max(SLICE // max(job.row_elements, 1), 1) * job.row_elements


def _all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Returns whether all elements are finite: a finite sum proves it; otherwise every element is checked."""
    total = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum()
    return math.isfinite(float(total)) or all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _first_broken(tensor: torch.Tensor) -> int:
    return int(torch.isfinite(tensor).logical_not().nonzero()[0])


def _tensor(buffer: np.ndarray, dtype: str) -> torch.Tensor:
    """Returns a buffer as a torch tensor."""
    return torch.from_numpy(buffer.view(np.uint8)).view(TORCH_DTYPES[dtype])
