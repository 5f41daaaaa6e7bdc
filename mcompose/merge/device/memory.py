"""A device that several threads share: whose turn it is, and what fits into its memory.

Which tensors a device merges must follow from the plan and the device alone, or the same recipe would give other bytes
when something else happens to use the device. So the size of its memory decides, and not what is free of it: a tensor
is merged there when both what threads hold (inputs and result as they travel) and what the arithmetic needs (`memory`)
stay within their shares. When memory is short all the same, the run ends with a sentence.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Accelerator"]

HELD_SHARE, WORK_SHARE = 0.25, 0.55
"""Shares of a device's memory; the rest is for libraries, fragments and other programs."""


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
