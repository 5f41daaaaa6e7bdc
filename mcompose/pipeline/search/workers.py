"""Runs trials: in this process, or in several that share the study's file.

A trial whose merge is not finite is noted and passed over; anything else that fails stops the search and gives the
trial back. A process that dies leaves a trial behind, which whoever opens the search next gives back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mcompose.errors import McomposeError, NumericsError
from mcompose.pipeline.search.study import Study, StudyPlan, open_study
from mcompose.progress import OnCount, ProgressBar

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from mcompose.pipeline.search.objective import Outcome
    from mcompose.pipeline.search.space import Settings

__all__ = ["SearchBar", "TrialRunner", "run_trials"]

POLL = 0.2
"""Seconds between two looks at the workers."""


class TrialRunner(Protocol):
    """Tells what settings are worth."""

    def __call__(self, settings: Settings, *, on_progress: OnCount | None = None) -> Outcome:
        """Merges, asks and scores."""
        ...


class SearchBar:
    """A bar that counts trials, with the best score so far; only on a terminal.

    Args:
        total: Number of trials in all.
        quiet: Whether nothing is shown.
    """

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total, self._bar = total, ProgressBar("search", unit="trial", quiet=quiet)
        self._finished: int | None = None
        self._best = ""

    def show(self, study: Study) -> None:
        """Counts what is finished."""
        if self._bar.is_silent:
            return
        rows = [row for row in study.rows() if row.finished]
        scores = [row.score for row in rows if row.score is not None]
        self._best = f"best {max(scores):.4f}" if scores else ""
        if self._finished is None:
            self._bar.start(self._total, len(rows))
        self._finished = len(rows)
        self._bar.move_to(self._finished, self._best)

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Shows how far the trial under way is."""
        self._bar.move_to(self._finished or 0, f"{self._best} {task} {done}/{total}".strip())

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.finish()


def run_trials(
    study: Study, make: Callable[[], TrialRunner], *, workers: int, deadline: float | None, bar: SearchBar
) -> None:
    """Runs trials until the budget is spent or the time is up.

    Args:
        study: Study that records them.
        make: Makes the function that scores settings; with several workers it is sent to other processes.
        workers: Processes; 1 runs in this one.
        deadline: By ``time.monotonic``; no trial begins after it.
        bar: Shown what happens.

    Raises:
        McomposeError: A trial failed for a reason other than its numbers, or a worker died.
    """
    bar.show(study)
    try:
        if workers == 1:
            _work(study, make, deadline=deadline, bar=bar)
        else:
            _spread(study, make, workers=workers, deadline=deadline, bar=bar)
    finally:
        bar.close()


def _work(study: Study, make: Callable[[], TrialRunner], *, deadline: float | None, bar: SearchBar | None) -> None:
    runner: TrialRunner | None = None
    while deadline is None or time.monotonic() < deadline:
        claim = study.claim()
        if claim is None:
            return
        try:
            runner = runner or make()
            started = time.monotonic()
            try:
                outcome = runner(claim.settings, on_progress=bar.on_progress if bar else None)
                study.finish(claim, outcome, seconds=time.monotonic() - started)
            except NumericsError as error:
                study.fail(claim, error.message, seconds=time.monotonic() - started)
        except BaseException:
            study.give_back(claim)
            raise
        if bar:
            bar.show(study)


def _spread(
    study: Study, make: Callable[[], TrialRunner], *, workers: int, deadline: float | None, bar: SearchBar
) -> None:
    context = multiprocessing.get_context("spawn")  # threads of torch and of the kernels do not survive a fork
    errors = context.SimpleQueue()
    cores = max(1, len(os.sched_getaffinity(0)) // workers)
    children = [
        context.Process(target=_child, args=(study.plan, make, deadline, cores, errors), daemon=True)
        for _ in range(workers)
    ]
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children) and not _failed(children):
            for child in children:
                child.join(POLL / workers)
            bar.show(study)
        failed = _failed(children)  # before the others are stopped, which is not a failure of theirs
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
            if child.pid is not None:
                child.join()
        study.give_back_all()
    if not errors.empty():
        raise errors.get()
    if failed:
        code = failed[0].exitcode or 0
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise McomposeError(
            f"A worker of the search ended with {end}; what was finished is kept.",
            hint="Every worker holds a model of its own: with too little memory, give fewer '--workers'.",
        )


def _failed(children: Sequence[SpawnProcess]) -> list[SpawnProcess]:
    return [child for child in children if child.exitcode not in {None, 0}]


def _child(plan: StudyPlan, make: Callable[[], TrialRunner], deadline: float | None, cores: int, errors: Any) -> None:
    """Runs a worker: it ignores Ctrl-C, which the parent handles, and ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))  # read by torch when the runner loads it
    try:
        _work(open_study(plan), make, deadline=deadline, bar=None)
    except McomposeError as error:
        errors.put(error)
        sys.exit(1)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
