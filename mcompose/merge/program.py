"""The program that makes one segment: the method's own, or the plain one that only converts.

A method without a chunked form (mergekit's, through the bridge) gets the whole segment at once.
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
    """One source, adapter folded, in the output's dtype; nothing is merged."""

    passes = 0
    chunk_multiple = 1

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Nothing to measure."""
        return True

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Hands the source on."""
        del start, base
        return kernels.convert(sources[0], out)


class Whole:
    """A method that sees whole tensors only.

    Args:
        method: The method.
        task: The tensor.
    """

    passes = 0
    chunk_multiple = 0

    def __init__(self, method: Method, task: TensorTask) -> None:
        self._method, self._task = method, task

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Nothing to measure."""
        return True

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Calls the method's function on the tensors in their own shape."""
        del start
        tensors = [self._single(source) for source in sources]
        merged = call_whole(self._method, self._task, tensors, None if base is None else self._single(base))
        return kernels.convert(np.ascontiguousarray(merged, dtype=np.float32).reshape(-1), out)

    def _single(self, chunk: np.ndarray) -> np.ndarray:
        values = np.empty(self._task.shape, np.float32)
        kernels.convert(chunk, values.reshape(-1))
        return values


def call_whole(method: Method, task: TensorTask, sources: Sequence[Any], base: Any) -> Any:
    """Merges one whole tensor, native or mergekit's.

    Args:
        method: The method.
        task: The tensor, with its settings.
        sources: float32 arrays of the task's shape: numpy's, or torch's on any device.
        base: The base, or None.

    Returns:
        The merged weights, of the same kind.
    """
    if method.name.startswith(MERGEKIT_PREFIX):
        return method.function(sources, base=base, task=task, **arguments_for(method, task))
    return merge_whole(method, task, sources, base)


def task_for(job: TensorJob, segment: Segment, *, survey: Any = None) -> TensorTask:
    """The segment as its method sees it.

    Args:
        job: The tensor.
        segment: Its rows. Rows that do not begin the tensor have a name of their own, for the randomness.
        survey: What a whole-model method has learnt.
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
    """The program of one segment.

    Args:
        job: The tensor.
        segment: Its rows: ``merged``, ``folded`` or ``cast``.
        survey: What a whole-model method has learnt.
    """
    if segment.action != "merged":
        return Convert()
    method, task = find_method(segment.method), task_for(job, segment, survey=survey)
    return Whole(method, task) if method.program is None else method.program(task)
