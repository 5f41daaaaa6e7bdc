"""Surveys of whole-model methods, measured before the first tensor is merged (``ties-global``: one threshold for all).

All segments of one method, with the same sources and parameters, share one survey: it reads all their chunks, pass by
pass, and is then part of each segment's task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mcompose.merge.catalogue import find_method
from mcompose.merge.job import Segment, TensorJob
from mcompose.methods import Survey, TensorTask

if TYPE_CHECKING:
    from mcompose.merge.stream import JobStream

__all__ = ["Surveys"]

MODEL = "the whole model"


class Surveys:
    """The surveys of a plan."""

    def __init__(self) -> None:
        self._members: list[tuple[TensorJob, Segment]] = []
        self._by_key: dict[str, Survey] = {}

    @classmethod
    def of(cls, jobs: Sequence[TensorJob]) -> Surveys:
        """Creates the surveys that a plan's jobs need; most plans do not need any.

        Args:
            jobs: All jobs of the plan, finished or not: a survey covers the whole model.
        """
        surveys = cls()
        groups: dict[str, list[tuple[TensorJob, Segment]]] = {}
        for job in jobs:
            for segment in job.segments:
                if segment.action == "merged" and find_method(segment.method).whole_model:
                    groups.setdefault(_key(segment), []).append((job, segment))
        for key, members in groups.items():
            surveys._members += members
            surveys._by_key[key] = _survey(members)
        return surveys

    @property
    def passes(self) -> int:
        """Largest number of passes of a survey."""
        return max((survey.passes for survey in self._by_key.values()), default=0)

    def of_segment(self, segment: Segment) -> Survey | None:
        """Returns the survey that a segment belongs to; None when its method does not need one."""
        return self._by_key.get(_key(segment)) if self._by_key else None

    def segments(self, index: int) -> list[tuple[TensorJob, Segment]]:
        """Returns the segments that are read in a pass, from 0."""
        return [(job, segment) for job, segment in self._members if index < self._by_key[_key(segment)].passes]

    def measurer(self, index: int) -> Callable[[JobStream, tuple[TensorJob, Segment]], None]:
        """Returns the function that measures one segment in a pass, on one thread."""

        def measure(stream: JobStream, item: tuple[TensorJob, Segment]) -> None:
            job, segment = item
            survey = self._by_key[_key(segment)]

            def visit(start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> None:
                del start
                survey.measure(index, sources, base)

            stream.measure(job, segment, visit)

        return measure

    def finish(self, index: int) -> None:
        """Ends a pass of every survey that has this pass."""
        for survey in self._by_key.values():
            if index < survey.passes:
                survey.finish(index)


def _survey(members: Sequence[tuple[TensorJob, Segment]]) -> Survey:
    first = members[0][1]
    elements = sum((s.stop - s.start) * math.prod(job.shape[1:]) for job, s in members)
    task = TensorTask(
        name=MODEL,
        shape=(elements,),
        sources=tuple(c.source for c in first.contributions),
        weights=first.weights,
        parameters=first.parameters,
        seed=first.seed,
        has_base=first.base is not None,
    )
    make = find_method(first.method).survey
    assert make is not None, "a whole-model method makes a survey"
    return make(task)


def _key(segment: Segment) -> str:
    sources = [c.source for c in segment.contributions]
    return repr((segment.method, sources, sorted(segment.parameters.items()), segment.seed))
