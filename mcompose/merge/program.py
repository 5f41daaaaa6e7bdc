"""Returns the program that makes one segment: the method's program, or one that only converts.

A method without a chunked form (such as mergekit's) gets the whole segment at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcompose.merge.catalogue import MERGEKIT_PREFIX, find_method
from mcompose.merge.job import Segment, TensorJob
from mcompose.methods import Method, Program, TensorTask, arguments_for, kernels, merge_whole

__all__ = ["Convert", "Whole", "call_whole", "program_for", "task_for"]


class Convert:
    """Program that converts one source, with its adapter folded, to the output's dtype without a merge."""

    passes = 0
    chunk_multiple = 1

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Nothing to measure."""
        return True

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Converts the source."""
        del start, base
        return kernels.convert(sources[0], out)


class Whole:
    """Program of a method that needs whole tensors.

    Args:
        method: The method.
        task: The tensor, with its settings.
    """

    passes = 0
    chunk_multiple = 0

    def __init__(self, method: Method, task: TensorTask) -> None:
        self._method, self._task = method, task

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Nothing to measure."""
        return True

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Calls the method's function on the tensors in their original shape."""
        del start
        tensors = [self._single(source) for source in sources]
        merged = call_whole(self._method, self._task, tensors, None if base is None else self._single(base))
        return kernels.convert(np.ascontiguousarray(merged, dtype=np.float32).reshape(-1), out)

    def _single(self, chunk: np.ndarray) -> np.ndarray:
        values = np.empty(self._task.shape, np.float32)
        kernels.convert(chunk, values.reshape(-1))
        return values


def call_whole(method: Method, task: TensorTask, sources: Sequence[Any], base: Any) -> Any:
    """Merges one whole tensor with a native method or one of mergekit's.

    Args:
        method: The method.
        task: The tensor, with its settings.
        sources: float32 arrays of the task's shape, of numpy or of torch on any device.
        base: The base's array; None without a base.

    Returns:
        The merged array, of the same library.
    """
    if method.name.startswith(MERGEKIT_PREFIX):
        return method.function(sources, base=base, task=task, **arguments_for(method, task))
    return merge_whole(method, task, sources, base)


def task_for(job: TensorJob, segment: Segment, *, survey: Any = None) -> TensorTask:
    """Returns a segment as a task for its method.

    Args:
        job: Job of the tensor.
        segment: Segment of the job. A segment that does not start at row 0 gets its own name, for random numbers.
        survey: Survey of a whole-model method; None for others.
    """
    name = job.address or job.name
    return TensorTask(
        name=name if segment.start == 0 else f"{name}[{segment.start}:]",
        shape=job.shape_of(segment),
        sources=tuple(c.source for c in segment.contributions),
        weights=segment.weights or (1.0 / len(segment.contributions),) * len(segment.contributions),
        parameters=segment.parameters,
        seed=segment.seed,
        has_base=segment.base is not None,
        survey=survey,
    )


def program_for(job: TensorJob, segment: Segment, *, survey: Any = None) -> Program:
    """Returns the program of one segment.

    Args:
        job: Job of the tensor.
        segment: Segment of the job: ``merged``, ``folded`` or ``cast``.
        survey: Survey of a whole-model method; None for others.
    """
    if segment.action != "merged":
        return Convert()
    method, task = find_method(segment.method), task_for(job, segment, survey=survey)
    return Whole(method, task) if method.program is None else method.program(task)
