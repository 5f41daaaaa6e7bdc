"""A device that several threads share: one computes at a time, and their tensors must fit into its memory.

Which tensors are merged on the device must depend only on the plan and the device; otherwise the same recipe could give
different bytes when another program uses the device. So the total memory decides, not the free memory: a tensor is
merged there when its inputs and result as stored, and the memory of the arithmetic (``merge.memory``), stay within
their shares. When memory still runs out, the run stops with an error.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Accelerator"]

HELD_SHARE, WORK_SHARE = 0.25, 0.55
"""Shares of a device's memory; the rest is for libraries, fragmentation and other programs."""


class Accelerator:
    """A torch device that threads share.

    Args:
        device: The torch device.
        memory: Size of its memory in bytes; None for no limit.
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
        """Returns an accelerator that may use all memory of a device."""
        cuda = device.type == "cuda"
        return cls(device, memory=torch.cuda.get_device_properties(device).total_memory if cuda else None)

    def fits(self, *, held: int, work: int) -> bool:
        """Returns whether a tensor is merged on the device.

        Args:
            held: Bytes of its inputs and its result as stored; two such tensors must fit at the same time.
            work: Bytes that the arithmetic needs.
        """
        return 2 * held <= self._memory * HELD_SHARE and work <= self._memory * WORK_SHARE

    @contextmanager
    def room(self, held: int) -> Iterator[None]:
        """Reserves memory for a tensor; waits until other threads have released enough."""
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
        """Waits for the turn to compute: one thread at a time, so that only one tensor is in memory in float32.

        Torch on the CPU splits sums by its number of threads, which would change the result, so it is set to one.
        """
        with self._turn:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(before)
