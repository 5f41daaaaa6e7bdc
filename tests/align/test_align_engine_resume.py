"""Runs that are stopped, by kill -9, Ctrl-C or a loss that is not a number, resume to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from align_folders import STAGE, build

from mcompose.align.run import StageRequest, run_stage
from mcompose.align.trainer import last_checkpoint
from mcompose.align.watch import Divergence
from mcompose.errors import InterruptedRunError, McomposeError, NumericsError, OutputError, RequestError
from mcompose.recipe import Stage

LONG = {
    **STAGE, "train": ["projectors", "language"], "lora": {"encoder": {"rank": 2, "dropout": 0.3}}, "lr": 1e-3,
    "steps": 8, "save_every": 3,
}  # fmt: skip

RUN = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from mcompose.align.run import StageRequest, run_stage
from mcompose.recipe import Stage
settings, home, folder, pause = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
def slow(batch):
    time.sleep(pause)
    return batch
run_stage(StageRequest(Stage(**settings), 1, home / "out", folder, home, "tiny", masks=(slow,)))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return build(tmp_path_factory.mktemp("resume")).parent


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "1"
    run_stage(request(home, folder))
    return folder


def request(home, folder, **changes):
    return StageRequest(Stage(**{**LONG, **changes}), 1, home / "out", folder, home, "tiny", quiet=True)


def rows(folder):
    """Step, loss and gradient's norm of every step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in lines]


def start(home, folder, pause=0.1):
    command = [sys.executable, "-c", RUN, json.dumps(LONG), str(home), str(folder), str(pause)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def wait_for_step(process, folder, step):
    log = folder / "log.jsonl"
    for _ in range(1200):
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get there")


def same_result(one: Path, other: Path):
    assert rows(one) == rows(other)
    for name in ("delta.safetensors", "adapter_model.safetensors", "adapter_config.json", "stage.json"):
        first, second = (one / name).read_bytes(), (other / name).read_bytes()
        if name == "stage.json":  # the place of the parent differs
            first, second = (json.loads(text) | {"parent": ""} for text in (first, second))
        assert first == second, name


def test_a_killed_run_goes_on_to_the_same_losses_and_bytes(home, straight, tmp_path):
    folder = tmp_path / "1"
    process = start(home, folder)
    wait_for_step(process, folder, 5)
    process.kill()
    process.communicate()
    assert not (folder / "stage.json").exists()
    assert last_checkpoint(folder / "run").name == "checkpoint-3"
    run_stage(request(home, folder))
    same_result(folder, straight)


def interrupted(home, folder, *, before):
    """A run that Ctrl-C stops in the step that takes this sample."""

    def interrupt(batch):
        if before in batch["positions"]:
            signal.raise_signal(signal.SIGINT)
        return batch

    with pytest.raises(InterruptedRunError, match=r"was stopped after step \d of 8") as stop:
        run_stage(replace(request(home, folder), masks=(interrupt,)))
    return stop.value


def test_ctrl_c_saves_the_step_and_the_next_run_ends_the_same(home, straight, tmp_path):
    folder = tmp_path / "1"
    handler = signal.getsignal(signal.SIGINT)
    assert "Run the same command again" in interrupted(home, folder, before=16).hint
    assert signal.getsignal(signal.SIGINT) is handler
    done = len(rows(folder))
    assert 3 < done < 8
    assert last_checkpoint(folder / "run").name == f"checkpoint-{done}"
    run_stage(request(home, folder))
    same_result(folder, straight)


def test_a_point_that_is_not_whole_is_not_believed(home, straight, tmp_path):
    folder = tmp_path / "1"
    interrupted(home, folder, before=16)
    newest = last_checkpoint(folder / "run")
    (newest / "complete").unlink()
    (newest / "optimizer.pt").write_bytes(b"torn")
    assert last_checkpoint(folder / "run").name == "checkpoint-3"
    run_stage(request(home, folder))
    same_result(folder, straight)


def test_no_resume_starts_over(home, tmp_path):
    folder = tmp_path / "1"

    interrupted(home, folder, before=16)
    assert last_checkpoint(folder / "run") is not None
    outcome = run_stage(replace(request(home, folder, steps=2, save_every=1), resume=False))
    assert "discarded (as requested)" in outcome.notices[0]
    assert len(rows(folder)) == 2


def test_two_runs_never_share_a_folder(home, tmp_path):
    folder = tmp_path / "1"

    def intrude(batch):
        if batch["positions"][0] == 0:
            run_stage(request(home, folder))
        return batch

    with pytest.raises(OutputError, match="Another run is writing"):
        run_stage(replace(request(home, folder), masks=(intrude,)))


def test_a_folder_with_something_else_is_left_alone(home, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_stage(request(home, tmp_path / "1"))
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_no_number_stops_with_advice(home, tmp_path):
    def poison(batch):
        if batch["positions"][0] >= 16:
            batch["sees__pixel_values"] = batch["sees__pixel_values"] * float("nan")
        return batch

    job = replace(request(home, tmp_path / "1"), masks=(poison,))
    with pytest.raises(NumericsError, match="The loss became nan in step 5 of 8") as failure:
        run_stage(job)
    assert "Lower 'lr'" in failure.value.hint
    assert last_checkpoint(tmp_path / "1" / "run").name == "checkpoint-3"  # from before it happened
    assert not (tmp_path / "1" / "stage.json").exists()


def test_divergence_is_told_from_noise():
    noisy, falling, rising, back = Divergence(5), Divergence(5), Divergence(5), Divergence(5)
    assert not any(noisy.has_diverged(2 + (-1) ** step) for step in range(200))
    assert not any(falling.has_diverged(8 / (1 + step)) for step in range(200))
    assert [rising.has_diverged(1 + 0.2 * step) for step in range(40)].index(True) == 15  # the mean rose by more than 2
    values = [0.5, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, *[0.8] * 5]
    assert [back.has_diverged(value) for value in values].index(True) == 10  # their mean is then 0.52, the best was 0.1


def test_a_run_that_diverges_stops(home, tmp_path):
    job = request(home, tmp_path / "1", train=["all"], lora={}, lr=30.0, steps=60, clip=0.0)
    with pytest.raises(NumericsError, match=r"The loss (runs away|became)") as failure:
        run_stage(job)
    assert "'lr'" in failure.value.hint


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({}, "'accumulation: 2'"),
        ({"accumulation": 4}, "'gradient_checkpointing: true'"),
        ({"accumulation": 4, "gradient_checkpointing": True}, "'precision: mixed'"),
        ({"accumulation": 4, "gradient_checkpointing": True, "precision": "mixed", "lora": {}}, "'lora:'"),
    ],
)
def test_out_of_memory_says_which_knob_to_turn(home, tmp_path, changes, hint):
    def full(batch):
        raise MemoryError

    with pytest.raises(McomposeError, match="Memory ran out") as failure:
        run_stage(replace(request(home, tmp_path / "1", **changes), masks=(full,)))
    assert hint in failure.value.hint


def test_missing_data_are_told_before_the_model_is_loaded(home, tmp_path, monkeypatch):
    monkeypatch.setattr("mcompose.align.run.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(RequestError, match=r"There is no dataset at .*nowhere\.jsonl"):
        run_stage(request(home, tmp_path / "1", data=["nowhere.jsonl"]))
    with pytest.raises(RequestError, match="no data"):
        run_stage(request(home, tmp_path / "1", data=[]))
    assert not (tmp_path / "1").exists()
