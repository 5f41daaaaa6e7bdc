"""A device that several threads share: whose turn it is, and what fits into its memory.

Which tensors a device merges must follow from the plan and the device alone, or the same recipe would give other bytes
when something else happens to use the device. So the size of its memory decides, and not what is free of it: a tensor
is merged there when both what threads hold (inputs and result as they travel) and what the arithmetic needs stay within
their shares. When memory is short all the same, the run ends with a sentence.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mcompose.checkpoint.tensor import DTYPE_BITS
from mcompose.merge.job import Segment, TensorJob

__all__ = ["Accelerator", "held_bytes", "work_bytes"]

HELD_SHARE, WORK_SHARE = 0.25, 0.55
"""Shares of a device's memory; the rest is for libraries, fragments and other programs."""

FLOATS_PER_SOURCE, FLOATS_BESIDE = 4, 12
"""float32 copies of a tensor that arithmetic holds at its peak, all inputs included; measured on every method."""

SHORT_SQUARES = 6
"""Square float64 matrices as long as all sources' short sides together; measured on ``optmerge``."""

INPUT_SQUARES = 3
"""Square float64 matrices as long as a row; measured on ``wudi``."""


class Accelerator:
    """A torch device.

    Args:
        device: The device.
        memory: Its bytes; None for no limit.
    """

    def __init__(self, device: torch.device, *, memory: int | None) -> None:
        self.device = device
        self.has_doubles = device.type != "mps"
        self._memory = math.inf if memory is None else memory
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._held = 0

    @classmethod
    def of(cls, device: torch.device) -> Accelerator:
        """Takes a device with all its memory."""
        cuda = device.type == "cuda"
        return cls(device, memory=torch.cuda.get_device_properties(device).total_memory if cuda else None)

    def fits(self, *, held: int, work: int) -> bool:
        """Whether a tensor is merged on the device.

        Args:
            held: Bytes of its inputs and its result, as they travel; two such tensors must find room.
            work: Bytes that the arithmetic takes.
        """
        return 2 * held <= self._memory * HELD_SHARE and work <= self._memory * WORK_SHARE

    @contextmanager
    def room(self, held: int) -> Iterator[None]:
        """Waits until other threads leave room for a tensor that fits, and keeps it."""
        with self._changed:
            self._changed.wait_for(lambda: self._held + held <= self._memory * HELD_SHARE)
            self._held += held
        try:
            yield
        finally:
            with self._changed:
                self._held -= held
                self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the turn to compute. One at a time, so that only one tensor is held in float32.

        Torch on the CPU cuts its sums by its number of threads, which would put that into the result: it is held to
        one.
        """
        with self._turn:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(before)


def held_bytes(job: TensorJob, segment: Segment) -> int:
    """Bytes of a segment's inputs, float32 where an adapter is folded, and of its result."""
    elements = (segment.stop - segment.start) * job.row_elements
    bits = sum(DTYPE_BITS["F32" if c.low_rank else c.entry.dtype] for c in segment.inputs) + DTYPE_BITS[job.dtype]
    return elements * bits // 8


def work_bytes(segment: Segment, shape: tuple[int, ...], *, squares: bool) -> int:
    """Bytes that merging a whole tensor takes at most, inputs in float32 included.

    Args:
        segment: Its rows.
        shape: Their shape.
        squares: Whether the method may build square matrices, as those on singular vectors do.
    """
    many = len(segment.contributions)
    floats = math.prod(shape) * (FLOATS_PER_SOURCE * many + FLOATS_BESIDE)
    if not squares or len(shape) != 2:
        return 4 * floats
    return 4 * floats + 8 * (SHORT_SQUARES * (many * min(shape)) ** 2 + INPUT_SQUARES * shape[1] ** 2)
