"""``mcompose search`` as it is typed: tables, JSON, and requests that cannot be met."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import run
from tiny_sources import write_language_model, write_recipe

from mcompose.recipe import load_recipe

SOURCES = [{"name": "plain", "model": "local:base"}, {"name": "expert", "model": "local:expert"}]
HEADER = {"task": "letters", "version": 1, "metric": "exact_match", "modalities": ["text"], "max_new_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("search")
    write_language_model(folder / "base")
    write_language_model(folder / "expert", change=0.6, seed=1)
    rows = [{"inputs": [], "question": f"{a} {b}", "answer": "??"} for a in "abcd" for b in "efgh"]
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [HEADER, *rows]))
    write_recipe(folder / "recipe.yaml", sources=SOURCES, merge={"method": "naivemc"}, output={"format": "text"})
    return folder


def test_the_table_starts_with_the_chosen_trial_and_the_recipe_is_written(folder, monkeypatch, capsys):
    code = run(
        ["search", "recipe.yaml", "--task", "letters.jsonl", "--trials", 4, "-o", "table", "-q"], monkeypatch, folder
    )
    out, _ = capsys.readouterr()
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "recipe-searched.yaml"
    assert lines[1].startswith("  best      trial ")
    best = json.loads((folder / "table" / "search.json").read_text())["best"]
    header = next(k for k, line in enumerate(lines) if line.startswith("trial"))
    assert lines[header].split() == ["trial", "score", "expert"]
    assert lines[header + 2].split() == [
        str(best["trial"]), f"{best['score']:.3f}", f"{best['weights']['expert']:.3f}",
    ]  # fmt: skip
    assert len(lines) == header + 2 + 4
    assert load_recipe(folder / "recipe-searched.yaml").recipe.merge.weights == best["weights"]


def test_json_is_all_that_stands_on_stdout(folder, monkeypatch, capsys):
    arguments = [
        "recipe.yaml",
        "--task",
        "letters.jsonl",
        "--objective",
        "consistency",
        "--low",
        "0.2",
        "--high",
        "0.8",
    ]
    code = run(["search", *arguments, "--step", "0.2", "--limit", 5, "--json", "-o", "grid"], monkeypatch, folder)
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["objective"] == "consistency"
    assert [trial["weights"]["expert"] for trial in told["trials"]] == [0.2, 0.4, 0.6, 0.8]
    assert told == json.loads((folder / "grid" / "search.json").read_text())


def test_parameters_and_task_weights_are_read(folder, monkeypatch, capsys):
    write_recipe(folder / "ties.yaml", base="local:base", sources=SOURCES[1:], merge={"method": "ties"})
    arguments = ["ties.yaml", "--task", "letters.jsonl", "--task-weight", "letters:2", "--no-weights", "--trials", 2]
    assert run(["search", *arguments, "--parameter", "density:0.2:0.8:0.2", "--json"], monkeypatch, folder) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == ["The recipe's own settings are outside the search space and were not tried."]
    assert {trial["parameters"]["density"] for trial in told["trials"]} <= {0.2, 0.4, 0.6, 0.8}
    assert all(trial["weights"] is None for trial in told["trials"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--task'"),
        (["--task", "none.jsonl"], "error: There is no task at none.jsonl."),
        (["--task", "letters.jsonl", "--task-weight", "letters"], "error: '--task-weight letters' is not a weight."),
        (["--task", "letters.jsonl", "--objective", "taste"], "'taste'"),
        (["--task", "letters.jsonl", "--gradient", "1"], "'--gradient'"),
        (["--task", "letters.jsonl", "--parameter", "density:0:1"], "error: 'naivemc' has no parameter 'density'."),
        (["--task", "letters.jsonl", "--sum", "1", "--high", "2"], "error: Weights that add up start from 0"),
        (["--task", "letters.jsonl", "-o", "base"], "error: The folder 'base' holds something else"),
    ],
)
def test_a_request_that_cannot_be_met_ends_with_code_2(folder, monkeypatch, capsys, arguments, message):
    assert run(["search", "recipe.yaml", *arguments], monkeypatch, folder) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not list(folder.glob("base/.*")), "nothing is left in a folder of someone else"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_search_that_is_stopped_from_outside_goes_on(folder, monkeypatch, capsys, workers, end):
    name = f"stopped-{workers}-{end}"
    arguments = ["recipe.yaml", "--task", "letters.jsonl", "--trials", "200", "--workers", workers, "-o", name, "-q"]
    command = [sys.executable, "-m", "mcompose", "search", *map(str, arguments)]
    path = os.pathsep.join(sys.path)
    running = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    journal = folder / name / "study.journal"
    wait_for(lambda: journal.is_file() and journal.read_text().count('"outcome"') >= 3)
    children = processes_under(running.pid)
    running.send_signal(end)
    _, err = running.communicate(timeout=300)
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    if end == signal.SIGINT:
        assert running.returncode == 1
        assert "error: Interrupted: " in err
        assert "Traceback" not in err
    done = [line for line in journal.read_text().splitlines() if '"outcome"' in line]
    assert run(["search", *arguments[:4], "12", *arguments[5:], "--json"], monkeypatch, folder) == 0
    told = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in told["trials"]].count("done") == max(12, len(done))
    assert load_recipe(folder / "recipe-searched.yaml").recipe.merge.weights == told["best"]["weights"]


def processes_under(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in listed]


def wait_for(happened, seconds: float = 900) -> None:
    latest = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < latest, "it took too long"
        time.sleep(0.1)
