"""The same jobs on a torch device: whole tensors, through the methods' own functions.

Reading, widening, adapters, checks, rounding and writing are the CPU engine's; only the arithmetic moves. Each thread
holds one whole tensor of every source in float32, on the host and on the device. The path is tested as ``torch:cpu``
and has not been run on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from mcompose.checkpoint.codec import raw_dtype
from mcompose.errors import RequestError
from mcompose.merge.catalogue import find_method
from mcompose.merge.job import Segment, TensorJob
from mcompose.merge.program import call_whole, task_for
from mcompose.merge.stream import JobStream
from mcompose.methods import kernels
from mcompose.methods.method import Program

__all__ = ["TorchStream", "check_device"]


def check_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        RequestError: torch does not know the name, or cannot use the device here.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = re.split(r"[.:\n] |\n", str(error))[0].rstrip(".") or "torch refused it"
        raise RequestError(f"Device '{name}' cannot be used: {reason}.", hint="Use '--device cpu'.") from error
    return device


@dataclass
class TorchStream(JobStream):
    """Runs jobs on one thread, merging on a torch device.

    Args:
        device: The device.
    """

    device: torch.device | None = None

    def _combine(self, job: TensorJob, segment: Segment, emit: Callable[[memoryview], None], program: Program) -> None:
        if segment.action != "merged" or find_method(segment.method).whole_model:
            super()._combine(job, segment, emit, program)
            return
        total = (segment.stop - segment.start) * job.row_elements
        digests = [xxhash.xxh3_128() for _ in segment.inputs]
        self._inputs += digests
        for span in self._blocks(total, max(total, 1)):
            sources, base = self._load_all(segment, job, span, digests=digests)
            task = task_for(job, segment)
            merged = call_whole(
                find_method(segment.method),
                task,
                [self._moved(source, task.shape) for source in sources],
                None if base is None else self._moved(base, task.shape),
            )
            values = np.ascontiguousarray(merged.float().cpu().numpy()).reshape(-1)
            result = self.scratch.array("result", raw_dtype(job.dtype), values.size)
            if kernels.convert(values, result) and self.check_finite:
                raise self._broken(job, segment, result, span=span)
            emit(result.view(np.uint8).data)

    def _moved(self, chunk: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        values = np.empty(shape, np.float32)
        kernels.convert(chunk, values.reshape(-1))
        return torch.from_numpy(values).to(self.device)
