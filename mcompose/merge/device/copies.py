"""Copies between host and device, in order, while the host does something else.

On CUDA each thread has a queue (a stream) of its own, so that its copies run beside the arithmetic, which is one
stream for all threads. A mark stands for the copies so far: memory that they read or fill is touched again only after
the mark was waited for. Everywhere else a copy is done when the call returns, and a mark is nothing. Not run on CUDA;
the protocol is tested with a queue that copies as late as it may.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["CudaQueue", "Queue", "host_memory", "open_queue"]


class Queue:
    """Copies that are done at once.

    Args:
        device: Where device memory is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Device memory for copies to fill; its content is anything."""
        return torch.empty(count, dtype=dtype, device=self.device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begins to copy one way or the other; both must live until a later mark was waited for."""
        target.copy_(source)

    def mark(self) -> Any:
        """Stands for all copies so far."""
        return None

    def wait(self, mark: Any) -> None:
        """Returns when the copies before a mark are done."""

    def after_arithmetic(self) -> None:
        """Returns when all arithmetic so far is done, so that its memory may be reused and its result copied."""


class CudaQueue(Queue):
    """Copies on a CUDA stream of their own, which the host does not wait for.

    Memory for uploads belongs to that stream: the arithmetic's memory may be handed out again while kernels still read
    it, which is right for later kernels and wrong for copies beside them.

    Args:
        device: The CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Device memory of the copies' stream."""
        with torch.cuda.stream(self._stream):
            return super().empty(count, dtype)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Puts a copy at the end of the stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Any:
        """An event at the end of the stream."""
        return self._stream.record_event()

    def wait(self, mark: Any) -> None:
        """Waits for an event."""
        mark.synchronize()

    def after_arithmetic(self) -> None:
        """Waits for the device's arithmetic."""
        torch.cuda.current_stream(self.device).synchronize()


def open_queue(device: torch.device) -> Queue:
    """A queue for one thread."""
    return CudaQueue(device) if device.type == "cuda" else Queue(device)


def host_memory(device: torch.device, nbytes: int) -> np.ndarray:
    """Bytes that a device copies to and from: pinned for CUDA, so that copies do not hold up the host.

    Where the system allows no (more) pinned memory it is plain, and copies take longer.
    """
    if device.type == "cuda":
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError:
            pass
    return np.empty(nbytes, np.uint8)
