"""Every bad input gives one clear sentence and its exit code, and leaves nothing that looks finished."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from safetensors.numpy import load_file, save_file
from tiny_sources import write_recipe

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(sources: Path, tmp_path: Path) -> Path:
    for name in ("base", "expert", "sees"):
        shutil.copytree(sources / name, tmp_path / name)
    return tmp_path


def recipe(folder: Path, **changes: object) -> Path:
    whole: dict[str, object] = {
        "base": "local:base",
        "sources": [{"name": "sees", "model": "local:sees"}, {"name": "expert", "model": "local:expert"}],
        "merge": {"method": "naivemc"},
        "output": {"dir": "out"},
    }
    return write_recipe(folder / "recipe.yaml", **{**whole, **changes})


def truncate(folder: Path) -> None:
    path = folder / "expert" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def absurd_header(folder: Path) -> None:
    path = folder / "expert" / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def missing_shard(folder: Path) -> None:
    keys = load_file(folder / "expert" / WEIGHTS)
    (folder / "expert" / WEIGHTS).unlink()
    weight_map = dict.fromkeys(keys, "model-00001-of-00001.safetensors")
    (folder / "expert/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def outside(folder: Path) -> None:
    keys = load_file(folder / "expert" / WEIGHTS)
    (folder / "expert" / WEIGHTS).rename(folder / "secret.safetensors")
    weight_map = dict.fromkeys(keys, "../secret.safetensors")
    (folder / "expert/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def pickled(folder: Path) -> None:
    (folder / "expert" / WEIGHTS).rename(folder / "expert/pytorch_model.bin")


def edited(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "expert" / WEIGHTS
        tensors = {name: array.copy() for name, array in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def narrower(tensors: dict[str, np.ndarray]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:-2])


def another_base(tensors: dict[str, np.ndarray]) -> None:
    random = np.random.default_rng(0)
    for name, array in tensors.items():
        tensors[name] = random.standard_normal(array.shape, dtype=np.float32) * array.std()


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan


def something_else(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").write_text("precious")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (missing_shard, 2, ["expert", "model-00001-of-00001.safetensors"]),
        (truncate, 2, ["expert", WEIGHTS, "bytes"]),
        (outside, 2, ["expert", "../secret.safetensors"]),
        (absurd_header, 2, ["expert", WEIGHTS, "header"]),
        (edited(narrower), 2, ["layers.0.mlp.up_proj.weight", "sees", "expert"]),
        (edited(another_base), 2, ["expert", "base", "--allow-different-base"]),
        (pickled, 2, ["expert", "pytorch_model.bin"]),
        (edited(not_a_number), 1, ["expert", "layers.1.mlp.up_proj.weight"]),
        (something_else, 2, ["out", "thesis.tex"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damaged_sources(folder, monkeypatch, capsys, damage, code, words):
    damage(folder)
    assert run(["merge", str(recipe(folder)), "--quiet"], monkeypatch) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for word in words:
        assert word in message, message
    left = sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []
    assert left in ([], ["thesis.tex"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge": {"metod": "naivemc"}}, ["recipe.yaml:", "metod", "Did you mean 'method'?"]),
        ({"merge": {"method": "tiess"}}, ["recipe.yaml:", "tiess", "Did you mean 'ties'?"]),
        ({"merge": {"method": "ties", "parameters": {"densty": 1}}}, ["densty", "Did you mean 'density'?"]),
        ({"merge": {"method": "naivemc", "weights": {"sees": 1.0}}}, ["expert"]),
        ({"base": "base"}, ["hub:base", "local:base"]),
        ({"base": "local:nowhere"}, ["nowhere"]),
        ({"base": None, "merge": {"method": "damc"}}, ["'damc' needs a base"]),
        ({"compose": {"decouple": "donor"}}, ["'sees' brings 'image' and carries no group", "convert"]),
        ({"align": {"stages": {1: {"train": ["projectrs"]}}}}, ["recipe.yaml:", "Did you mean 'projectors'?"]),
        ({"base": None, "merge": {"method": "ties"}}, ["base"]),
    ],
    ids=["key", "method", "parameter", "weight", "bare", "absent", "damc", "decouple", "align", "no base"],
)
def test_wrong_requests(folder, monkeypatch, capsys, changes, words):
    assert run(["merge", str(recipe(folder, **changes)), "--quiet"], monkeypatch) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message
    assert not (folder / "out").exists()


def test_a_missing_recipe_is_named(tmp_path, monkeypatch, capsys):
    assert run(["plan", str(tmp_path / "none.yaml")], monkeypatch) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    assert run(["mrege"], monkeypatch) == 2


def test_a_full_disk_is_told_and_nothing_looks_finished(folder, monkeypatch, capsys):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert run(["merge", str(recipe(folder)), "--quiet"], monkeypatch) == 1
    message = capsys.readouterr().err
    assert "disk is full" in message
    assert "1,000 are free" in message
    assert not list(folder.glob("out*"))


def test_ctrl_c_keeps_what_is_done_and_the_next_run_gives_the_same_bytes(folder, monkeypatch, capsys):
    path = recipe(folder)
    assert run_whole(folder, path, "whole") == 0
    code = (
        "import sys, time\n"
        "from mcompose.checkpoint import StagedOutput\n"
        "record = StagedOutput.record\n"
        "def slow(self, *a, **k):\n"
        "    record(self, *a, **k); time.sleep(0.2); sys.stderr.write('.'); sys.stderr.flush()\n"
        "StagedOutput.record = slow\n"
        "from mcompose.cli.app import main\n"
        f"sys.argv = ['mcompose', 'merge', {str(path)!r}, '--quiet', '--threads', '1']\n"
        "main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        seen = b""
        while seen.count(b".") < 5:
            seen += os.read(process.stderr.fileno(), 1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
        assert process.wait(30) == 1, rest
    assert "error: " in rest
    assert "Traceback" not in rest
    assert not (folder / "out").exists()
    assert (folder / "out.partial").is_dir()
    assert run(["merge", str(path), "--quiet", "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["resumed_tensors"] >= 4
    assert (folder / "out" / WEIGHTS).read_bytes() == (folder / "whole" / WEIGHTS).read_bytes()
    assert not (folder / "out.partial").exists()


def run_whole(folder: Path, recipe: Path, name: str) -> int:
    command = [sys.executable, "-m", "mcompose", "merge", str(recipe), "-o", str(folder / name), "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode
