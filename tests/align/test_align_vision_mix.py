"""Stages of checkpoints with mixed image encoders: parts, cached features, and the token budget of views."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from align_folders import STAGE, write_data
from damc_sources import write_natives
from PIL import Image
from safetensors.torch import load_file
from tiny_experts import write_expert

from mcompose.align.load import load_processor
from mcompose.align.stage_data import open_data
from mcompose.errors import RequestError
from mcompose.pipeline.align import AlignOptions, align
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.recipe import Stage


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    write_natives(folder / "natives")
    write_data(folder / "data")
    for name in ("clip", "dinov2-registers"):
        write_expert(name, folder / name)
    stages = {1: {**STAGE, "max_length": 400}, 2: {**STAGE, "max_length": 400, "train": ["projectors", "language"]}}
    merge(write_recipe(folder, stages), options=MergeOptions(quiet=True))
    return folder


def write_recipe(folder: Path, stages: dict) -> Path:
    mix = {
        "encoders": {
            "clip": {"encoder": "local:clip", "class_token": "keep"},
            "dino": {"encoder": "local:dinov2-registers"},
        },
        "streams": [{"of": ["clip", "dino"]}],
        "views": {"size": 28, "tiles": "2x2", "align": "corner"},
    }
    recipe = {
        "schema": 1, "name": "tiny", "base": "local:natives/base", "sources": [], "merge": {"method": "linear"},
        "compose": {"vision_mix": mix}, "align": {"stages": stages}, "output": {"dir": "out"},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def trained(folder: Path, stage: int) -> dict[str, torch.Tensor]:
    place = folder / "out.stages" / str(stage)
    return {key: value for file in sorted(place.glob("*.safetensors")) for key, value in load_file(file).items()}


def test_a_stage_trains_projectors_and_vectors_and_leaves_encoders(folder):
    align(folder / "recipe.yaml", stage=1, options=AlignOptions())
    changed = trained(folder, 1)
    names = {key.removeprefix("model.towers.eyes.") for key in changed}
    linear, norm = (f"projectors.0.{layer}" for layer in ("linear", "norm"))
    weights = [f"{layer}.{kind}" for layer in (linear, norm) for kind in ("weight", "bias")]
    assert names == {*weights, "start", "end", "empty"}
    before = load_file(folder / "out" / "model.safetensors")
    assert not torch.equal(before["model.towers.eyes.start"], changed["model.towers.eyes.start"])


def test_cached_features_train_to_the_same_numbers(folder):
    for name, cached in (("direct", False), ("cached", True)):
        path = write_recipe(folder, {1: {**STAGE, "max_length": 400, "feature_cache": cached}})
        align(path, stage=1, options=AlignOptions(output=folder / name))
    direct, played = (
        {key: value for file in sorted((folder / name).rglob("*.safetensors")) for key, value in load_file(file).items()
         if key.startswith("model.towers.eyes.")}
        for name in ("direct", "cached")
    )  # fmt: skip
    assert direct
    for key, value in direct.items():
        torch.testing.assert_close(played[key], value, atol=1e-5, rtol=1e-4)


def test_a_picture_that_exceeds_the_limit_is_named_before_training(folder):
    path = write_recipe(folder, {1: {**STAGE, "max_length": 30}})
    Image.new("RGB", (56, 56)).save(folder / "data" / "7.png")
    with pytest.raises(
        RequestError, match=r"its picture of \d+ x \d+ pixels becomes 35 tokens, and 'max_length' is 30"
    ):
        align(path, stage=1, options=AlignOptions(output=folder / "short"))


def test_boxes_of_tasks_follow_the_alignment_of_the_views(folder):
    Image.new("RGB", (40, 20)).save(folder / "data" / "wide.png")
    record = '{"image": "wide.png", "expression": "it", "box": [10, 5, 20, 20]}\n'
    (folder / "data" / "refer.jsonl").write_text(record)
    processor = load_processor(folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    stage = {**STAGE, "max_length": 400, "data": [{"path": "data/refer.jsonl", "task": "refer"}]}
    data = open_data(Stage(**stage), processor, folder=folder, config=config)
    (answer,) = data.mixture.sample_at(0, 0).messages[1]["content"]
    assert answer["text"] == "[0.25, 0.12, 0.50, 0.50]"  # no filling above: the views put pictures into the corner
    stage["data"][0]["boxes"] = {"align": "center"}
    with pytest.raises(RequestError, match="mixed encoders place pictures by 'corner'"):
        open_data(Stage(**stage), processor, folder=folder, config=config)
