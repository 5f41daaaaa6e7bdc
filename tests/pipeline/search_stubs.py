"""Stand-ins for a model: settings whose worth is known, told to a file, so that other processes can be watched."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mcompose.errors import McomposeError, NumericsError
from mcompose.pipeline.search.objective import Outcome
from mcompose.pipeline.search.space import Settings
from mcompose.pipeline.search.study import Study, StudyPlan, open_study
from mcompose.pipeline.search.workers import SearchBar, run_trials

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Hill:
    """Makes a bench whose score is highest where the first source weighs ``top``.

    Args:
        log: Told every trial that begins, with the process.
        top: The known optimum.
        bad_above: Weights of the first source that are not finite.
        stop_after: Trials after which the process is killed, interrupted or fails.
        how: ``kill``, ``interrupt`` or ``error``.
        pause: Seconds that a trial takes.
        partners: Processes that must have begun before a trial ends.
    """

    log: Path
    top: float = 0.3
    bad_above: float = 2.0
    stop_after: int | None = None
    how: str = "interrupt"
    pause: float = 0.0
    partners: int = 1

    def __call__(self):
        done = 0

        def bench(settings: Settings, *, on_progress=None) -> Outcome:
            nonlocal done
            weight = settings.weights["a"]
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {weight}\n")
            if self.stop_after is not None and done >= self.stop_after:
                stop(self.how)
            done += 1
            time.sleep(self.pause)
            self._meet()
            if weight > self.bad_above:
                raise NumericsError("'lm_head.weight' is not finite at element 7.")
            return Outcome(1.0 - (weight - self.top) ** 2, {"hill": 1.0}, digest=f"{weight}")

        return bench

    def _meet(self) -> None:
        """Processes start in their own time; a shared study is only seen when all have come."""
        latest = time.monotonic() + 120
        while len(processes(self.log)) < self.partners and time.monotonic() < latest:
            time.sleep(0.02)


def stop(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise McomposeError("The hill fell down.", hint="Climb another.")
    raise KeyboardInterrupt


def run(plan: StudyPlan, make, *, workers: int = 1, deadline: float | None = None) -> Study:
    """One run of a search: what an earlier one left is given back, then trials are run."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(plan)
    study.give_back_all()
    run_trials(study, make, workers=workers, deadline=deadline, bar=SearchBar(plan.budget, quiet=True))
    return study


def processes(log: Path) -> set[int]:
    return {int(line.split()[0]) for line in log.read_text().splitlines()}


def weights(log: Path) -> list[float]:
    return [float(line.split()[1]) for line in log.read_text().splitlines()]
