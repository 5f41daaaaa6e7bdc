"""The study: which trials there are, which comes next, and what they came to. Kept by Optuna in one journal file.

Any number of processes may share the file; a lock makes asking one step, so that a budget is kept to the trial and no
grid point is tried twice. Every trial draws its suggestion from a seed of its own (the study's seed and the number of
trials before it), so that a search that was interrupted and went on suggests what an uninterrupted one would have.

Optuna's states are used as follows: COMPLETE; PRUNED for a merge that is not finite; FAIL for a trial that was cut off,
which is tried again and counts for nothing.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from mcompose.pipeline.search.consistency import Point
from mcompose.pipeline.search.objective import Outcome
from mcompose.pipeline.search.space import Axis, Settings, Space

__all__ = ["Claim", "Study", "StudyPlan", "TrialRow", "open_study"]

FILE = "study.journal"
LOCK = "study.lock"
NAME = "mcompose-search"
STATES = {"COMPLETE": "done", "PRUNED": "failed", "FAIL": "interrupted", "RUNNING": "running", "WAITING": "waiting"}
RANDOM_FIRST = 10
"""Trials at random before the sampler learns from them: Optuna's own default."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study is to do; may be sent to another process.

    Args:
        folder: Folder of its file.
        space: Coefficients that it varies.
        budget: Trials in all, those of earlier runs included.
        seed: Seed of the suggestions.
        authored: Where the recipe's own settings stand in the space; None when they are not tried.
        authored_settings: Those settings, to the last digit.
        grid: Place to axis values; empty for a sampled search.
    """

    folder: Path
    space: Space
    budget: int
    seed: int = 0
    authored: Mapping[str, Any] | None = None
    authored_settings: Settings | None = None
    grid: Mapping[Point, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A trial that a process has taken on."""

    number: int
    settings: Settings


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Args:
        number: Number of the trial in the study.
        state: ``done``, ``failed``, ``interrupted`` or ``running``.
        settings: Settings of its merge.
        score: 0 to 1; None where there is none (yet).
        scores: Task to score.
        seconds: Wall time of merging and asking.
        digest: Names the bytes of the merged model.
        reason: Why it failed.
        authored: True for the recipe's own settings.
        same_as: The trial with the same settings whose score it took over.
        point: Place on the grid; None in a sampled search.
        answers: For the consistency rule.
    """

    number: int
    state: str
    settings: Settings
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    digest: str = ""
    reason: str = ""
    authored: bool = False
    same_as: int | None = None
    point: Point | None = None
    answers: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Returns whether it will not be run again: it has an outcome, or a merge that cannot be used."""
        return self.state in {"done", "failed"}


class _Flock(JournalFileOpenLock):
    """The system drops it when the process dies; Optuna's own would keep the others waiting for half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._descriptor = path, -1

    def acquire(self) -> bool:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self._descriptor)


def _tpe(seed: int) -> TPESampler:
    with _without_remarks():
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=RANDOM_FIRST)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silences Optuna's warnings that features used here are experimental, as some versions call them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class _SeededByTrial(BaseSampler):
    """TPE that forgets between trials what it drew, and starts each from a seed of its own.

    Args:
        seed: The study's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._now: tuple[int, TPESampler] | None = None

    def _sampler(self, study: optuna.Study, trial: FrozenTrial) -> TPESampler:
        if self._now is None or self._now[0] != trial.number:
            earlier = study.get_trials(deepcopy=False)[: trial.number]
            ordinal = sum(other.state != TrialState.FAIL for other in earlier)
            seed = int(np.random.SeedSequence([self._seed, ordinal]).generate_state(1)[0])
            self._now = trial.number, _tpe(seed)
        return self._now[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)


class Study:
    """A study that this process has open.

    Args:
        plan: Plan of the study.
        study: Optuna's.
    """

    def __init__(self, plan: StudyPlan, study: optuna.Study) -> None:
        self.plan = plan
        self._study = study
        self._claimed: dict[int, optuna.Trial] = {}

    def attribute(self, name: str) -> Any:
        """Returns a recorded value about the whole study; None when it was not recorded."""
        return self._study.user_attrs.get(name)

    def note(self, name: str, value: Any) -> None:
        """Notes something about the whole study."""
        self._study.set_user_attr(name, value)

    def rows(self) -> list[TrialRow]:
        """Returns all trials, those of other processes included."""
        return [_row(trial) for trial in self._study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def taken(self) -> int:
        """Trials that count towards the budget."""
        return sum(row.state != "interrupted" for row in self.rows())

    def is_done(self) -> bool:
        """Returns whether the budget is spent."""
        return self.taken() >= self.plan.budget

    def claim(self) -> Claim | None:
        """Takes the next trial on.

        Returns:
            The trial; None when the budget is spent or the grid is done. A trial whose settings were tried before is
            finished at once with the earlier score, and the one after it is taken.
        """
        while True:
            with self._locked():
                if self.is_done() or not self._line_up():
                    return None
                trial = self._study.ask()
                values = {axis.name: _suggested(trial, axis) for axis in self.plan.space.axes}
                settings = self._settings(trial, values)
                trial.set_user_attr("settings", settings.to_json())
            self._claimed[trial.number] = trial
            twin = next((row for row in self.rows() if row.state == "done" and row.settings == settings), None)
            if twin is None:
                return Claim(trial.number, settings)
            outcome = Outcome(twin.score, twin.scores, twin.answers, twin.digest)
            self.finish(Claim(trial.number, settings), outcome, seconds=0.0, same_as=twin.number)

    def finish(self, claim: Claim, outcome: Outcome, *, seconds: float, same_as: int | None = None) -> None:
        """Notes what a trial came to."""
        told = {**vars(outcome), "answers": list(outcome.answers), "seconds": round(seconds, 3), "same_as": same_as}
        trial = self._claimed.pop(claim.number)
        trial.set_user_attr("outcome", {name: value for name, value in told.items() if value not in (None, [], {}, "")})
        self._study.tell(trial, outcome.score or 0.0)

    def fail(self, claim: Claim, reason: str, *, seconds: float) -> None:
        """Notes that a trial's merge cannot be used; it counts, and its settings are avoided."""
        trial = self._claimed.pop(claim.number)
        trial.set_user_attr("outcome", {"reason": reason, "seconds": round(seconds, 3)})
        self._study.tell(trial, state=TrialState.PRUNED)

    def give_back(self, claim: Claim) -> None:
        """Notes that a trial was cut off; it will be taken on again."""
        trial = self._claimed.pop(claim.number, None)
        if trial is not None:  # else it was cut off while its outcome was noted: the next run gives it back
            self._study.tell(trial, state=TrialState.FAIL)

    def give_back_all(self) -> None:
        """Gives back the trials of processes that died; only for who holds the whole search."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _line_up(self) -> bool:
        """Puts the next trial whose place is known in front; False when nothing is left to do."""
        trials = [trial for trial in self._study.get_trials(deepcopy=False) if not self._is_stub(trial)]
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        retried = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.number not in retried:
                attrs = {name: trial.user_attrs[name] for name in ("authored", "point") if name in trial.user_attrs}
                self._study.enqueue_trial(trial.params, user_attrs={**attrs, "again": trial.number})
                return True
        if self.plan.authored is not None and not any("authored" in trial.user_attrs for trial in trials):
            self._study.enqueue_trial(dict(self.plan.authored), user_attrs={"authored": True})
            return True
        if not self.plan.grid:
            return True
        done = {tuple(trial.user_attrs.get("point", ())) for trial in trials}
        point = next((point for point in self.plan.grid if point not in done), None)
        if point is None:
            return False
        self._study.enqueue_trial(dict(self.plan.grid[point]), user_attrs={"point": list(point)})
        return True

    def _is_stub(self, trial: FrozenTrial) -> bool:
        """Returns whether it was interrupted before its last suggestion, so that nothing was tried."""
        return trial.state == TrialState.FAIL and any(axis.name not in trial.params for axis in self.plan.space.axes)

    def _settings(self, trial: optuna.Trial, values: Mapping[str, Any]) -> Settings:
        if trial.user_attrs.get("authored") and self.plan.authored_settings is not None:
            return self.plan.authored_settings
        settings = self.plan.space.settings(values)
        assert settings is not None, "places without settings are not on the grid"
        return settings

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = _Flock(self.plan.folder / LOCK)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()


def open_study(plan: StudyPlan) -> Study:
    """Opens a study, or begins it.

    Args:
        plan: Plan of the study.

    Returns:
        The study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = plan.folder / FILE
    with _without_remarks():
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_Flock(plan.folder / f"{FILE}.lock")))
        study = optuna.create_study(
            storage=storage,
            sampler=_SeededByTrial(plan.seed),
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
        )
    return Study(plan, study)


def _suggested(trial: optuna.Trial, axis: Axis) -> Any:
    if axis.kind == "word":
        return trial.suggest_categorical(axis.name, list(axis.choices))
    if axis.kind == "int":
        return trial.suggest_int(axis.name, int(axis.low), int(axis.high), step=int(axis.step or 1))
    return trial.suggest_float(axis.name, axis.low, axis.high, step=axis.step)


def _row(trial: FrozenTrial) -> TrialRow:
    told: dict[str, Any] = trial.user_attrs.get("outcome", {})
    settings, point = trial.user_attrs.get("settings"), trial.user_attrs.get("point")
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state.name],
        settings=Settings() if settings is None else Settings.from_json(settings),
        score=told.get("score"),
        scores=told.get("scores", {}),
        seconds=told.get("seconds", 0.0),
        digest=told.get("digest", ""),
        reason=told.get("reason", ""),
        authored=bool(trial.user_attrs.get("authored")),
        same_as=told.get("same_as"),
        point=None if point is None else tuple(point),
        answers=tuple(told.get("answers", ())),
    )
