"""``mcompose align`` as it is typed: stages one after the other, reports, and requests that cannot be met."""

import importlib.util
import json
import shutil
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
import yaml
from command_line import run
from PIL import Image
from tiny_sources import write_recipe

from mcompose.pipeline.write import MergeOptions, merge

STAGES = {
    1: {"train": ["projectors"], "data": ["data.jsonl"], "steps": 2, "batch_size": 2, "lr": 1e-2, "max_length": 64},
    2: {"train": ["projectors", "head"], "data": ["data.jsonl"], "steps": 2, "batch_size": 2, "max_length": 64},
}


def write(folder: Path, **changes):
    sources = [{"name": "sees", "model": "local:sees"}, {"name": "expert", "model": "local:expert"}]
    whole = {"sources": sources, "merge": {"method": "linear"}, "output": {"dir": "out", "format": "composed"}}
    return write_recipe(folder / "recipe.yaml", **{**whole, "align": {"stages": STAGES}, **changes})


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """Sources, data and the composed checkpoint, made once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("align")
    for name in ("sees", "expert"):
        shutil.copytree(sources / name, folder / name)
    Image.new("RGB", (28, 28), (200, 10, 10)).save(folder / "red.png")
    records = [
        {
            "image": "red.png",
            "conversations": [
                {"from": "human", "value": "<image> what is this ?"},
                {"from": "gpt", "value": f"{answer} a b"},
            ],
        }
        for answer in "abcd"
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    merge(write(folder), options=MergeOptions(quiet=True))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


def test_stages_continue_one_another_to_a_checkpoint_that_verifies(folder, monkeypatch, capsys):
    assert run(["align", "--stage", "1", "--json"], monkeypatch, folder) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["folder"] == "out.stages/1"
    assert first["trained"] == {"projectors": {"tensors": 4, "parameters": 2112}}
    assert run(["align", "--stage", "2", "--export", "-o", "final", "--json"], monkeypatch, folder) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["output"], second["checkpoint"]) == ("final", "final")
    record = json.loads((folder / "out.stages/2/stage.json").read_text())
    assert record["parent"]["path"] == "../1"
    assert run(["verify", "final"], monkeypatch, folder) == 0
    capsys.readouterr()
    assert run(["diff", "out", "final", "--json"], monkeypatch, folder) == 0
    assert "projector" in capsys.readouterr().out
    card = (folder / "final/README.md").read_text()
    assert "aligned by a short fine-tune" in card
    assert "mcompose align recipe.yaml --stage 2" in card
    assert str(folder) not in card + (folder / "final/mcompose/ledger.json").read_text() + json.dumps(record)


def test_export_of_a_finished_stage_trains_nothing_again(folder, monkeypatch, capsys):
    assert run(["align", "--stage", "1"], monkeypatch, folder) == 0
    assert "with --export" in capsys.readouterr().out
    before = (folder / "out.stages/1/log.jsonl").stat().st_mtime_ns
    assert run(["align", "--stage", "1", "--export", "--json"], monkeypatch, folder) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["already_done"]
    assert report["checkpoint"] == "out-stage1"
    assert (folder / "out.stages/1/log.jsonl").stat().st_mtime_ns == before
    # An exported checkpoint knows which stages it went through.
    assert run(["align", "--stage", "2", "--checkpoint", "out-stage1", "-q"], monkeypatch, folder) == 0
    assert (folder / "out-stage1.stages/2/stage.json").is_file()


def test_the_export_answers(folder, monkeypatch, capsys):
    assert run(["align", "--stage", "1", "--export", "-q"], monkeypatch, folder) == 0
    capsys.readouterr()
    command = ["generate", "out-stage1", "<image> what is this ?", "--image", "red.png", "--max-new-tokens", "3"]
    assert run(command, monkeypatch, folder) == 0


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["--stage", "3"], {}, ["recipe.yaml:", "no stage 3", "It has 1, 2."]),
        (["--stage", "2"], {}, ["Stage 2 continues stage 1", "mcompose align recipe.yaml --stage 1"]),
        (["--stage", "1"], {"align": None}, ["has no 'align' section"]),
        (
            ["--stage", "1", "--checkpoint", "nowhere"],
            {},
            ["The checkpoint 'nowhere' does not exist", "mcompose merge"],
        ),
        (["--stage", "1", "--report-to", "tensorbord"], {}, ["Did you mean 'tensorboard'?"]),
        (["--stage", "1", "-o", "out/inside"], {}, ["lie inside one another"]),
        (["--stage", "1", "--export", "-o", "out"], {}, ["lie inside one another"]),
        (
            ["--stage", "1"],
            {"align": {"stages": {1: {**STAGES[1], "train": ["projector:see"]}}}},
            ["has no part 'projector:see'", "Did you mean 'projector:sees'?"],
        ),
        (
            ["--stage", "1"],
            {"align": {"stages": {1: {**STAGES[1], "data": ["gone.jsonl"]}}}},
            ["There is no dataset at", "gone.jsonl"],
        ),
        (["--stage", "1"], {"align": {"stages": {1: {**STAGES[1], "sharding": "fsdp"}}}}, ["torchrun"]),
    ],
)
def test_requests_that_cannot_be_met(folder, monkeypatch, capsys, arguments, changes, words):
    write(folder, **changes)
    if changes.get("align", 1) is None:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        del recipe["align"]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["align", *arguments], monkeypatch, folder) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said, said
    assert "Traceback" not in said
    assert not (folder / "out.stages").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_reporter_that_is_not_installed_is_named_before_anything_is_trained(folder, monkeypatch, capsys, name):
    (folder / name).mkdir()  # as earlier runs leave them behind; Python takes such a folder for a package
    whole = importlib.util.find_spec

    def find_spec(package, *rest):
        return PathFinder.find_spec(package, [str(folder)]) if package == name else whole(package, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run(["align", "--stage", "1", "--report-to", name], monkeypatch, folder) == 2
    said = capsys.readouterr().err
    assert f"'--report-to {name}' needs the package {name}." in said
    assert f"pip install {name}" in said
    assert not (folder / "out.stages").exists()


def test_the_recipe_defaults_to_the_one_that_is_here(tmp_path, monkeypatch, capsys):
    assert run(["align", "--stage", "1"], monkeypatch, tmp_path) == 2
    assert "recipe.yaml: the file does not exist" in capsys.readouterr().err
