"""Asynchronous copies between host and device, in order.

On CUDA each thread has its own queue (a stream), so that its copies run in parallel to the arithmetic, which uses one
stream for all threads. A mark stands for all copies so far: memory that they read or write may be used again only after
waiting for the mark. On other devices a copy is finished when the call returns, and a mark is None. Not run on CUDA;
the protocol is tested with a queue that delays copies as long as allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["CudaQueue", "Queue", "host_memory", "open_queue"]


class Queue:
    """Queue of synchronous copies.

    Args:
        device: The torch device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Allocates device memory for copies; its content is undefined."""
        return torch.empty(count, dtype=dtype, device=self.device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Starts a copy in either direction; both tensors must exist until a later mark was waited for."""
        target.copy_(source)

    def mark(self) -> Any:
        """Returns a mark for all copies so far."""
        return None

    def wait(self, mark: Any) -> None:
        """Waits until the copies before a mark are finished."""

    def after_arithmetic(self) -> None:
        """Waits until all arithmetic so far is finished, so that memory can be reused and results copied."""


class CudaQueue(Queue):
    """Queue of asynchronous copies on a separate CUDA stream.

    Memory for uploads is allocated on this stream: memory of the arithmetic's stream may be reused while kernels still
    read it, which is correct for later kernels but not for copies on another stream.

    Args:
        device: The CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Allocates device memory on the copies' stream."""
        with torch.cuda.stream(self._stream):
            return super().empty(count, dtype)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Adds a copy to the end of the stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Any:
        """Records an event at the end of the stream."""
        return self._stream.record_event()

    def wait(self, mark: Any) -> None:
        """Waits for an event."""
        mark.synchronize()

    def after_arithmetic(self) -> None:
        """Waits for the device's arithmetic."""
        torch.cuda.current_stream(self.device).synchronize()


def open_queue(device: torch.device) -> Queue:
    """Creates the queue of one thread."""
    return CudaQueue(device) if device.type == "cuda" else Queue(device)


def host_memory(device: torch.device, nbytes: int) -> np.ndarray:
    """Allocates host memory for copies: pinned for CUDA, so that copies are asynchronous.

    When the system does not allow (more) pinned memory, ordinary memory is used, and copies take longer.
    """
    if device.type == "cuda":
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError:
            pass
    return np.empty(nbytes, np.uint8)
