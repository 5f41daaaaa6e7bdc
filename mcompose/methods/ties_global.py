"""TIES as its authors wrote it: one threshold for the whole model, and a mean over the sources that agree."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from mcompose.methods.core.arrays import to_numpy
from mcompose.methods.core.declare import PerSource, each, method
from mcompose.methods.core.method import Program, TensorTask
from mcompose.methods.core.prune import Density, elect, keep_at_least
from mcompose.methods.core.prune_program import (
    Combination,
    Cut,
    KeepAll,
    KeepAtLeast,
    KeepNone,
    KeepRanks,
    PruneProgram,
)
from mcompose.methods.core.select import RankFinder

__all__ = ["ThresholdSurvey", "ties_global"]


class ThresholdSurvey:
    """Finds the threshold of every source over all tensors of a model.

    Counts are integers, so the order of tensors and threads does not matter; each thread counts on its own.

    Args:
        size: Elements of all tensors.
        densities: One a source.
    """

    passes = 2

    def __init__(self, size: int, densities: Sequence[float]) -> None:
        self.finders = [RankFinder([threshold_rank(size, density)], size + 1, guess=False) for density in densities]
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._own = threading.local()
        self._counted: list[list[RankFinder]] = []

    def measure(self, index: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> None:
        """Counts one chunk of any tensor, from any thread."""
        finders: list[RankFinder] | None = getattr(self._own, "finders", None)
        if finders is None:
            finders = self._own.finders = [finder.twin() for finder in self.finders]
            with self._lock:
                self._counted.append(finders)
        for finder, source in zip(finders, sources, strict=True):
            finder.measure(index, source, base)

    def finish(self, index: int) -> None:
        """Ends a pass: adds up what the threads have counted."""
        for counted in self._counted:
            for finder, part in zip(self.finders, counted, strict=True):
                finder.add(part)
        if index == 0:
            for finder in self.finders:
                finder.open_bins()
        self._begin()

    def thresholds(self) -> tuple[int, ...]:
        """Bit pattern of the smallest magnitude kept, one a source."""
        return tuple(finder.cut(0)[0] for finder in self.finders)


class _OwnThreshold(KeepRanks):
    """Takes one tensor for the whole model."""

    def __init__(self, size: int, density: float) -> None:
        self.finder = RankFinder([threshold_rank(size, density)], size + 1)

    def write(self, row: np.ndarray) -> None:
        """Keeps every magnitude from the threshold on."""
        KeepAtLeast(self.finder.cut(0)[0]).write(row)


def threshold_rank(size: int, density: float) -> int:
    """Rank, counted from 1 at the largest, of the smallest magnitude kept: one more than the share says."""
    return min(size, int(size * density) + 1)


def _survey(task: TensorTask, *, density: PerSource, lambda_: float) -> ThresholdSurvey:
    return ThresholdSurvey(prod(task.shape), each(density, len(task.sources)))


def _program(task: TensorTask, *, density: PerSource, lambda_: float) -> Program:
    size = prod(task.shape)
    keys = task.survey.thresholds() if task.survey is not None else (None,) * len(task.sources)
    cuts = [_cut(size, share, key) for share, key in zip(each(density, len(keys)), keys, strict=True)]
    ones = (1.0,) * len(cuts)
    return PruneProgram(cuts, Combination(ones, elected=True, average="count", scale=lambda_))


def _cut(size: int, density: float, key: int | None) -> Cut:
    if density >= 1 or size == 0:
        return KeepAll()
    if density <= 0:
        return KeepNone()
    return _OwnThreshold(size, density) if key is None else KeepAtLeast(key)


@method(
    "ties-global",
    title="TIES (global threshold, the authors' rule)",
    paper="arXiv:2306.01708",
    space="deltas",
    base="required",
    program=_program,
    survey=_survey,
)
def ties_global(deltas: Any, *, density: Density = 0.2, lambda_: float = 1.0) -> Any:
    """Trims every model to its largest deltas, elects a sign for each element, averages those that agree.

    Paper: TIES-Merging, arXiv:2306.01708; as in the authors' code, a magnitude equal to the threshold is kept, and
        the threshold is the largest magnitude that the share leaves out.
    Differs: where trimmed deltas cancel exactly the authors elect the majority sign of the whole model, which
        needs one more reading of every tensor; here plus wins. Density 0 keeps nothing.

    Args:
        deltas: M float32 arrays of one shape, source minus base. This form takes them for the whole model.
        density: Share of the model's elements kept.
        lambda_: Factor of the merged delta.

    Returns:
        The merged delta.
    """
    kept = []
    for delta, share in zip(deltas, each(density, len(deltas)), strict=True):
        size = prod(delta.shape)
        if share >= 1 or size == 0:
            kept.append(delta)
        elif share <= 0:
            kept.append(delta * 0.0)
        else:
            rank = size - threshold_rank(size, share)
            kept.append(keep_at_least(delta, float(np.sort(to_numpy(abs(delta)), axis=None)[rank])))
    ones = (1.0,) * len(kept)
    return elect(kept, ones, average="count", weighted=False, lambda_=lambda_)
