"""Whole searches on tiny models: what is found is what a merge gives, and every way of asking for nonsense is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from searchable import QUESTIONS, SOURCES, TOP, recipe, row, write_searchable, write_task
from tiny_sources import write_recipe

from mcompose.errors import InterruptedRunError, NumericsError, OutputError, RequestError
from mcompose.pipeline.measure import evaluate
from mcompose.pipeline.search.model import digest_of
from mcompose.pipeline.search.objective import ObjectiveSpec
from mcompose.pipeline.search.request import SpaceRequest
from mcompose.pipeline.search.run import SearchOptions, search
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.recipe import load_recipe

ALL_OF_THE_FIRST = {"match": {"key": "*"}, "weights": {"sees": 1, "expert": 0}}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    torch.set_num_threads(1)
    return write_searchable(tmp_path_factory.mktemp("searchable"))


@pytest.fixture
def folder(ready, tmp_path):
    """A recipe of its own beside links to the sources and tasks."""
    for name in ("base", "sees", "expert", "words.jsonl", "pictures.jsonl", *(f"{k}.png" for k in range(4))):
        (tmp_path / name).symlink_to(ready / name)
    recipe(tmp_path)
    return tmp_path


def ask(folder: Path, *tasks: str, objective="validation", **changes) -> ObjectiveSpec:
    return ObjectiveSpec(objective, tuple(folder / name for name in tasks or ("words.jsonl",)), **changes)


def options(**changes) -> SearchOptions:
    return SearchOptions(**{"quiet": True, "trials": 12, **changes})


def test_the_written_recipe_merges_to_the_winning_trial_and_its_score(folder):
    report = search(folder / "recipe.yaml", ask(folder, "words.jsonl", "pictures.jsonl"), options=options(trials=16))
    assert report.best.score > report.authored.score + 0.05
    assert report.best.settings.weights["expert"] == pytest.approx(TOP, abs=0.06)
    found = load_recipe(report.recipe)
    assert report.recipe == folder / "recipe-searched.yaml"
    assert found.recipe.merge.weights == report.best.settings.weights
    written = merge(report.recipe, options=MergeOptions(quiet=True)).result
    assert written.folder == folder / "out-searched"
    assert digest_of(written.ledger.tensors) == report.best.digest
    scores = {
        r.task: r.value for r in evaluate(written.folder, [folder / "words.jsonl", folder / "pictures.jsonl"]).results
    }
    assert scores == report.best.scores
    assert report.best.score == pytest.approx(sum(scores.values()) / 2)
    assert report.recipe.read_text().startswith(
        f"# Found by mcompose search in recipe.yaml: trial {report.best.number} of 16"
    )


def test_the_folder_holds_table_picture_and_study_and_no_model(folder):
    report = search(folder / "recipe.yaml", ask(folder), options=options(trials=5))
    names = sorted(path.name for path in report.folder.iterdir() if not path.name.endswith((".lock", "-lock")))
    assert names == ["search.json", "search.png", "study.journal"]
    table = json.loads((report.folder / "search.json").read_text())
    assert [trial["trial"] for trial in table["trials"]] == [0, 1, 2, 3, 4]
    assert table["best"] == max(table["trials"], key=lambda trial: (trial["score"], -trial["trial"]))
    assert table["trials"][0]["authored"] is True
    assert table["trials"][0]["weights"] == {"sees": 0.5, "expert": 0.5}
    pixels = np.asarray(Image.open(report.folder / "search.png").convert("RGB"))
    assert pixels.shape[1] > 1.5 * pixels.shape[0], "two panels"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "something is drawn"


def test_a_second_run_asks_nothing_and_says_the_same(folder, monkeypatch):
    first = search(folder / "recipe.yaml", ask(folder), options=options(trials=4))
    text = first.recipe.read_text()
    monkeypatch.setattr("mcompose.pipeline.search.run.compose", None)  # nothing is composed, loaded or asked
    again = search(folder / "recipe.yaml", ask(folder), options=options(trials=4))
    assert again.to_dict() == first.to_dict()
    assert again.recipe.read_text() == text


def test_an_interrupted_search_goes_on_to_the_same_result(folder, monkeypatch):
    from mcompose.pipeline.search.objective import Objective

    straight = search(folder / "recipe.yaml", ask(folder), options=options(output=folder / "straight"))
    calls, real = [], Objective.evaluate

    def interrupted(self, subject, **more):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, subject, **more)

    monkeypatch.setattr(Objective, "evaluate", interrupted)
    with pytest.raises(InterruptedRunError, match="Interrupted: 5 of 12 trials are done and kept"):
        search(folder / "recipe.yaml", ask(folder), options=options())
    resumed = search(folder / "recipe.yaml", ask(folder), options=options())
    assert len(calls) == 13
    kept = [r for r in resumed.rows if r.state == "done"]
    assert [(r.settings, r.score, r.digest) for r in kept] == [(r.settings, r.score, r.digest) for r in straight.rows]


def test_two_workers_find_what_one_finds_when_the_places_are_given(folder):
    space = SpaceRequest(low=0.2, high=0.8, step=0.2)
    questions = ask(folder, objective="consistency", limit=20)
    one = search(folder / "recipe.yaml", questions, options=options(space=space, trials=None, output=folder / "one"))
    two = search(
        folder / "recipe.yaml", questions, options=options(space=space, trials=None, output=folder / "two", workers=2)
    )
    assert {r.point: (r.answers, r.digest) for r in one.rows} == {r.point: (r.answers, r.digest) for r in two.rows}
    assert two.best.settings == one.best.settings


def test_consistency_is_the_rule_over_the_merged_models_own_answers(folder):
    report = search(folder / "recipe.yaml", ask(folder, objective="consistency"), options=options(trials=None))
    rows = {r.point[0]: r for r in report.rows}
    assert [rows[k].settings.weights["expert"] for k in range(7)] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    changes = {}
    for place in range(1, 6):
        trios = zip(rows[place - 1].answers, rows[place].answers, rows[place + 1].answers, strict=True)
        changes[place] = sum(not (a.lower() == b.lower() == c.lower()) for a, b, c in trios)
    assert len(set(changes.values())) > 1, "a rule that cannot tell is no test"
    place = min(changes, key=lambda k: (changes[k], k))
    assert report.best.point == (place,)
    assert report.best.score == pytest.approx(1 - changes[place] / len(QUESTIONS))
    assert rows[0].score is None
    own = recipe(folder, "own.yaml", merge={"method": "linear", "weights": rows[3].settings.weights})
    made = merge(own, output=folder / "own", options=MergeOptions(quiet=True)).result
    assert digest_of(made.ledger.tensors) == rows[3].digest


def test_consistency_never_looks_at_the_labels(folder):
    blind = write_task(folder / "words-blind.jsonl", [row(question, "") for question in QUESTIONS], task="words")
    seen = search(folder / "recipe.yaml", ask(folder, objective="consistency"), options=options(trials=None))
    unseen = search(
        folder / "recipe.yaml",
        ask(folder, blind.name, objective="consistency"),
        options=options(trials=None, output=folder / "blind"),
    )
    assert [r.answers for r in unseen.rows] == [r.answers for r in seen.rows]
    assert unseen.best.settings == seen.best.settings


def test_single_is_the_mean_over_modalities_of_tasks_that_show_one(folder):
    shown = {"modality": "image", "text": "<image>", "path": "0.png"}
    half = write_task(folder / "half.jsonl", [row("a b", "?", shown)], modalities=("image",))
    report = search(
        folder / "recipe.yaml",
        ask(folder, "words.jsonl", "pictures.jsonl", half.name, objective="single"),
        options=options(trials=3),
    )
    assert report.notes == ("Left out, since they do not show one modality alone: words.",)
    for r in report.rows:
        assert set(r.scores) == {"pictures", "half"}
        assert r.score == pytest.approx((r.scores["pictures"] + r.scores["half"]) / 2)


def test_tasks_are_weighed_as_asked(folder):
    questions = ask(folder, "words.jsonl", "pictures.jsonl", task_weights={"pictures": 3.0}, limit=8)
    for r in search(folder / "recipe.yaml", questions, options=options(trials=3)).rows:
        assert r.score == pytest.approx((r.scores["words"] + 3 * r.scores["pictures"]) / 4)


def test_gradients_and_parameters_are_searched_together(folder):
    write_recipe(
        folder / "ties.yaml", base="local:base", sources=SOURCES, output={"dir": "out"},
        merge={"method": "ties", "parameters": {"density": {"sees": 0.5, "expert": 0.5}}},
    )  # fmt: skip
    space = SpaceRequest(gradient=2, parameters=("density:0.2:0.9",))
    report = search(folder / "ties.yaml", ask(folder), options=options(space=space, trials=4))
    assert report.authored is None
    assert report.notes == ("The recipe's own settings are outside the search space and were not tried.",)
    assert {len(r.settings.weights["sees"]) for r in report.rows} == {2}
    written = merge(report.recipe, options=MergeOptions(quiet=True)).result
    assert digest_of(written.ledger.tensors) == report.best.digest


def test_merges_that_are_not_finite_are_noted_and_passed_over(folder):
    write_recipe(
        folder / "half.yaml", base="local:base", sources=SOURCES, output={"dir": "out"},
        merge={"method": "task_arithmetic", "dtype": "float16", "parameters": {"lambda": 1.0}},
    )  # fmt: skip
    space = SpaceRequest(weights=False, parameters=("lambda:1e7:1e8",))
    with pytest.raises(NumericsError, match=r"None of 3 trials .* can be chosen.*The first failure: .*not finite"):
        search(
            folder / "half.yaml", ask(folder), options=options(space=space, trials=3, seed=2, output=folder / "none")
        )
    report = search(folder / "half.yaml", ask(folder), options=options(space=SpaceRequest(high=1e8), trials=6))
    failed = [r for r in report.rows if r.state == "failed"]
    assert failed
    assert all("not finite" in r.reason for r in failed)
    assert "merges came out not finite" in report.to_text()
    assert report.best.settings.weights == {"sees": 0.5, "expert": 0.5}


def test_a_grid_that_the_time_was_too_short_for_is_kept_and_gone_on_with(folder):
    questions = ask(folder, objective="consistency", limit=10)
    with pytest.raises(InterruptedRunError, match="The time was up after 0 of 7 trials"):
        search(folder / "recipe.yaml", questions, options=options(trials=None, timeout=0))
    assert len(search(folder / "recipe.yaml", questions, options=options(trials=None)).rows) == 7


def test_a_folder_of_another_search_is_refused_and_says_what_differs(folder):
    path = folder / "recipe.yaml"
    search(path, ask(folder), options=options(trials=2))
    with pytest.raises(OutputError, match="holds a search that differs in its tasks"):
        search(path, ask(folder, limit=3), options=options(trials=2))
    with pytest.raises(OutputError, match="differs in its space"):
        search(path, ask(folder), options=options(trials=2, space=SpaceRequest(gradient=2)))
    recipe(folder, merge={"method": "linear", "weights": {"sees": 0.25, "expert": 0.75}})
    with pytest.raises(OutputError, match="differs in its recipe or sources"):
        search(path, ask(folder), options=options(trials=2))
    report = search(path, ask(folder), options=options(trials=2, resume=False))
    assert report.authored.settings.weights == {"sees": 0.25, "expert": 0.75}


def test_a_folder_or_a_recipe_of_someone_else_is_left_alone(folder):
    (folder / "recipe-search").mkdir()
    (folder / "recipe-search" / "thesis.tex").write_text("\\begin{document}")
    with pytest.raises(OutputError, match=r"holds something else: 'thesis.tex'"):
        search(folder / "recipe.yaml", ask(folder), options=options(resume=False))
    assert (folder / "recipe-search" / "thesis.tex").is_file()
    shutil.rmtree(folder / "recipe-search")
    (folder / "recipe-search" / "model").mkdir(parents=True)
    (folder / "recipe-search" / "model" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="holds something else: 'model'"):
        search(folder / "recipe.yaml", ask(folder), options=options(resume=False))
    assert (folder / "recipe-search" / "model" / "config.json").is_file(), "a name is no proof"
    shutil.rmtree(folder / "recipe-search")
    (folder / "recipe-searched.yaml").write_text("schema: 1\n")
    with pytest.raises(OutputError, match="is not of a search"):
        search(folder / "recipe.yaml", ask(folder), options=options())
    assert not (folder / "recipe-search").exists()


@pytest.mark.parametrize(
    ("changes", "asked", "wanted", "message"),
    [
        ({"merge": {"method": "slerp", "parameters": {"t": 0.5}}}, {}, {}, "'slerp' takes no weights"),
        ({"sources": SOURCES[:1]}, {}, {}, "has one source"),
        ({}, {"tasks": ("none.jsonl",)}, {}, "There is no task at"),
        ({}, {"tasks": ("words.jsonl", "words.jsonl")}, {}, "Two tasks are called 'words'"),
        ({}, {"tasks": ("words.jsonl",), "objective": "single"}, {}, "No task shows one modality alone"),
        ({}, {"task_weights": {"word": 2.0}}, {}, "'word', which is not a task"),
        ({}, {"task_weights": {"words": -1.0}}, {}, "is -1"),
        ({}, {"task_weights": {"words": 0.0}}, {}, "All tasks have the weight 0"),
        ({}, {"template": "vicunja"}, {}, "No template is called"),
        ({"output": {"dir": "out", "format": "text"}}, {"tasks": ("pictures.jsonl",)}, {}, "does not take"),
        ({}, {"objective": "consistency"}, {"trials": 3}, "The grid has 7 points, and 3 trials are allowed"),
        (
            {"merge": {"method": "linear", "overrides": [ALL_OF_THE_FIRST]}},
            {}, {}, "Nothing that .* merges depends on what is searched",
        ),
        (
            {"merge": {"method": "weight-mix", "parameters": {"beta": 0.5}}}, {}, {}, "cannot both be set",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_anything_is_written(folder, changes, asked, wanted, message):
    path = recipe(folder, **changes)
    asked = {"objective": "validation", "tasks": ("words.jsonl",), **asked}
    questions = ObjectiveSpec(**{**asked, "tasks": tuple(folder / name for name in asked["tasks"])})
    with pytest.raises(RequestError, match=message):
        search(path, questions, options=options(**wanted))
    assert not (folder / "recipe-search").exists()


def test_without_optuna_the_extra_is_named(folder):
    code = (
        "import sys\nsys.modules['optuna'] = None\nfrom pathlib import Path\n"
        "from mcompose.cli.app import main\n"
        f"sys.argv = ['mcompose', 'search', {str(folder / 'recipe.yaml')!r}, '--task', 'words.jsonl']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert "A search needs Optuna." in done.stderr
    assert "pip install 'mcompose[search]'" in done.stderr
