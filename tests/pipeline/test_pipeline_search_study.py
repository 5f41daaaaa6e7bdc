"""Trials: found optima, the same twice, resumed without repeating, shared by processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from search_stubs import HERE, Hill, processes, run, weights

from mcompose.errors import McomposeError
from mcompose.pipeline.search import workers as workers_module
from mcompose.pipeline.search.consistency import changed_answers, choose
from mcompose.pipeline.search.objective import Outcome
from mcompose.pipeline.search.request import make_grid
from mcompose.pipeline.search.run import _mend
from mcompose.pipeline.search.space import Axis, Settings, Space
from mcompose.pipeline.search.study import StudyPlan

SPACE = Space(("a", "b"), "sum")


def plan(folder: Path, budget: int = 25, **changes) -> StudyPlan:
    return StudyPlan(**{"folder": folder, "space": SPACE, "budget": budget, "seed": 3, **changes})


def tried(study):
    return [(row.state, row.settings, row.score) for row in study.rows() if row.state != "interrupted"]


def best(study):
    return max((row for row in study.rows() if row.score is not None), key=lambda row: row.score)


def test_a_known_optimum_is_found_and_the_same_way_twice(tmp_path):
    first = run(plan(tmp_path / "1"), Hill(tmp_path / "log"))
    assert best(first).settings.weights["a"] == pytest.approx(0.3, abs=0.03)
    assert tried(run(plan(tmp_path / "2"), Hill(tmp_path / "log"))) == tried(first)
    assert tried(run(plan(tmp_path / "3", seed=4), Hill(tmp_path / "log"))) != tried(first)


def test_what_was_learnt_is_used(tmp_path):
    """After the first ten at random, the sampler gathers around the top; it goes on exploring."""
    rows = run(plan(tmp_path / "s", budget=40), Hill(tmp_path / "log")).rows()
    distance = [abs(row.settings.weights["a"] - 0.3) for row in rows]
    assert sum(distance[25:]) / 15 < 0.6 * sum(distance[:10]) / 10


def test_two_coefficients_and_a_parameter(tmp_path):
    space = Space(("a", "b"), "free", parameters=(Axis("parameter:density", 0.0, 1.0),))

    def make():
        def bench(settings, *, on_progress=None):
            a, b = settings.weights.values()
            return Outcome(2.0 - (a - 0.2) ** 2 - (b - 0.8) ** 2 - (settings.parameters["density"] - 0.5) ** 2)

        return bench

    found = best(run(plan(tmp_path / "s", budget=80, space=space), make))
    assert found.settings.weights == pytest.approx({"a": 0.2, "b": 0.8}, abs=0.15)
    assert found.settings.parameters["density"] == pytest.approx(0.5, abs=0.15)


def test_the_recipes_own_settings_come_first_to_the_last_digit(tmp_path):
    own = Settings({"a": 1 / 3, "b": 2 / 3})
    study = run(plan(tmp_path / "s", 3, authored={"share:a": 1 / 3}, authored_settings=own), Hill(tmp_path / "log"))
    first = study.rows()[0]
    assert (first.authored, first.settings) == (True, own)
    assert first.score == 1.0 - (1 / 3 - 0.3) ** 2
    assert not any(row.authored for row in study.rows()[1:])


@pytest.mark.parametrize("how", ["interrupt", "error"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, how):
    own = {"authored": {"share:a": 0.5}, "authored_settings": Settings({"a": 0.5, "b": 0.5})}
    straight = run(plan(tmp_path / "straight", **own), Hill(tmp_path / "log"))
    for cut in (0, 3, 14):
        log = tmp_path / f"log-{cut}"
        with pytest.raises((KeyboardInterrupt, McomposeError)):
            run(plan(tmp_path / f"{cut}", **own), Hill(log, stop_after=cut, how=how))
        resumed = run(plan(tmp_path / f"{cut}", **own), Hill(log))
        assert tried(resumed) == tried(straight)
        begun = weights(log)
        assert len(begun) == 26, "25 trials, of which one was begun twice"
        assert begun[cut] == begun[cut + 1]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from search_stubs import Hill, run
from test_pipeline_search_study import plan
run(plan(Path({folder!r})), Hill(Path({log!r}), stop_after={after}, how="kill"))
"""


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    straight = run(plan(tmp_path / "straight"), Hill(tmp_path / "log"))
    log, folder = tmp_path / "killed-log", tmp_path / "killed"
    for after in (4, 5):
        code = CHILD.format(here=str(HERE), folder=str(folder), log=str(log), after=after)
        path = os.pathsep.join([str(HERE.parent), *sys.path])
        killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
        assert killed.returncode == -9
    resumed = run(plan(folder), Hill(log))
    assert tried(resumed) == tried(straight)
    assert [row.state for row in resumed.rows()].count("interrupted") == 2
    assert len(weights(log)) == 27


def test_a_line_that_was_half_written_is_cut_off(tmp_path):
    log = tmp_path / "log"
    before = tried(run(plan(tmp_path / "s", 5), Hill(log)))
    journal = tmp_path / "s" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "wor')
    _mend(journal)
    assert journal.read_bytes() == whole
    assert tried(run(plan(tmp_path / "s", 7), Hill(log)))[:5] == before
    assert len(weights(log)) == 7


def test_a_finished_study_asks_nothing_and_a_larger_budget_goes_on(tmp_path):
    log = tmp_path / "log"
    small = run(plan(tmp_path / "s", 6), Hill(log))
    assert small.is_done()
    run(plan(tmp_path / "s", 6), Hill(log))
    assert len(weights(log)) == 6
    large = run(plan(tmp_path / "s", 12), Hill(log))
    assert tried(large) == tried(run(plan(tmp_path / "straight", 12), Hill(tmp_path / "other")))
    assert weights(log) == weights(tmp_path / "other")


def test_no_trial_begins_after_the_deadline(tmp_path, monkeypatch):
    log = tmp_path / "log"
    clock = iter([0, 1, 2, 3, 4, 9, 9, 9])  # asked before, at the start and at the end of every trial
    monkeypatch.setattr(workers_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    study = run(plan(tmp_path / "s"), Hill(log), deadline=5)
    assert len(study.rows()) == len(weights(log)) == 2
    run(plan(tmp_path / "s"), Hill(log), deadline=5)
    assert len(weights(log)) == 2


def test_a_merge_that_is_not_finite_is_noted_counts_and_is_avoided(tmp_path):
    study = run(plan(tmp_path / "s", 40), Hill(tmp_path / "log", top=0.3, bad_above=0.5))
    failed = [row for row in study.rows() if row.state == "failed"]
    assert {row.reason for row in failed} == {"'lm_head.weight' is not finite at element 7."}
    assert all(row.settings.weights["a"] > 0.5 for row in failed)
    assert len(study.rows()) == 40
    assert best(study).settings.weights["a"] == pytest.approx(0.3, abs=0.05)
    assert sum(row.state == "failed" for row in study.rows()[20:]) < sum(
        row.state == "failed" for row in study.rows()[:20]
    )


def test_settings_that_were_tried_before_take_over_their_score(tmp_path):
    space = Space(("a", "b"), "none", parameters=(Axis("parameter:method", kind="word", choices=("x", "y", "z")),))
    asked = []

    def make():
        def bench(settings, *, on_progress=None):
            asked.append(settings.parameters["method"])
            return Outcome({"x": 0.1, "y": 0.5, "z": 0.2}[asked[-1]], digest=asked[-1])

        return bench

    study = run(plan(tmp_path / "s", 12, space=space), make)
    assert sorted(asked) == ["x", "y", "z"]
    rows = study.rows()
    assert len(rows) == 12
    for row in rows:
        if row.same_as is not None:
            assert (row.score, row.digest) == (rows[row.same_as].score, rows[row.same_as].digest)


def test_a_grid_is_gone_through_in_order_once_and_resumes(tmp_path):
    space = Space(("a", "b"), "sum", low=0.0, high=0.6, step=0.1)
    grid = make_grid(space)
    answers = {0: "abcd", 1: "abce", 2: "abcf", 3: "abcf", 4: "abcf", 5: "xbcf", 6: "xyzw"}
    asked = []

    def make(stop_at=None):
        def bench(settings, *, on_progress=None):
            place = round(settings.weights["b"] / 0.1)
            asked.append(place)
            if place == stop_at:
                raise KeyboardInterrupt
            return Outcome(None, answers=tuple(answers[place]))

        return bench

    wanted = plan(tmp_path / "s", budget=len(grid), space=space, grid=grid)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, lambda: make(stop_at=4))
    study = run(wanted, make)
    assert asked == [0, 1, 2, 3, 4, 4, 5, 6]
    done = {row.point: row.answers for row in study.rows() if row.state == "done"}
    # 1: e after d, before f. 2: f after e. 3: nothing. 4: a before x. 5: x after a, and bcf before yzw.
    assert changed_answers(done) == {(1,): 1, (2,): 1, (3,): 0, (4,): 1, (5,): 4}
    assert choose(changed_answers(done)) == ((3,),)


def test_two_workers_share_a_study_to_the_trial(tmp_path):
    log = tmp_path / "log"
    study = run(plan(tmp_path / "s", 16), Hill(log, partners=2), workers=2)
    rows = study.rows()
    assert [row.state for row in rows] == ["done"] * 16
    assert sorted(weights(log)) == sorted(row.settings.weights["a"] for row in rows)
    assert len(processes(log) - {os.getpid()}) == 2, "both worked"


@pytest.mark.parametrize(
    ("how", "message"),
    [("error", "The hill fell down. Climb another."), ("kill", "A worker of the search ended with signal 9")],
)
def test_a_worker_that_fails_stops_the_others_and_keeps_what_is_done(tmp_path, how, message):
    log = tmp_path / "log"
    with pytest.raises(McomposeError) as caught:
        run(plan(tmp_path / "s", 30), Hill(log, stop_after=2, how=how, pause=0.1), workers=2)
    assert message in str(caught.value)
    study = run(plan(tmp_path / "s", 8), Hill(log))
    assert len(tried(study)) == 8
    assert sum(row.state == "interrupted" for row in study.rows()) >= 1
