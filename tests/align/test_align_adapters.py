"""Stages of checkpoints with adapters: sets as parts, what the log says of gates, and what stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from align_folders import STAGE, write_data
from damc_sources import write_natives
from safetensors.torch import load_file

from mcompose.errors import UnknownNameError
from mcompose.pipeline.align import AlignOptions, align
from mcompose.pipeline.write import MergeOptions, merge

SETS = {
    "mm": {"experts": 3, "rank": 2},
    "mv": {"modalities": ["image"], "experts": 2, "rank": 2, "mode": "prefix"},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smola")
    write_natives(folder / "natives")
    write_data(folder / "data")
    stages = {
        1: {**STAGE, "train": ["adapters"]},
        2: {**STAGE, "train": ["adapter:mv"]},
        3: {**STAGE, "train": ["adapter:mx"]},
    }
    recipe = {
        "schema": 1, "name": "tiny", "base": "local:natives/base", "merge": {"method": "linear"},
        "sources": [{"name": "sees", "model": "local:natives/sees"}],
        "compose": {"adapters": SETS}, "align": {"stages": stages}, "output": {"dir": "out", "format": "composed"},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    merge(folder / "recipe.yaml", options=MergeOptions(quiet=True))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def test_a_stage_trains_all_sets_and_logs_their_gates(folder):
    align(folder / "recipe.yaml", stage=1, options=AlignOptions(export=True, output=folder / "trained"))
    before, after = tensors(folder / "out"), tensors(folder / "trained")
    changed = [key for key, value in after.items() if not torch.equal(before[key], value)]
    assert changed
    assert all(".adapters." in key for key in changed)
    assert {key.split(".")[-1] for key in changed} == {"down", "up", "router", "scale"}
    log = folder / "out.stages" / "1" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert 0.9 < row["gate_entropy/mm/text"] <= 1 + 1e-6
        assert 0 < row["least_share/mm/text"] <= 1 / 3 + 1e-6
    assert any("gate_entropy/mv/image" in row for row in rows)
    assert not any("gate_entropy/mv/text" in row for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_one_set_alone_and_a_misspelt_one(folder):
    align(folder / "recipe.yaml", stage=2, options=AlignOptions(checkpoint=folder / "out"))
    changed = tensors(folder / "out.stages" / "2")
    assert changed
    assert all(".adapters.mv." in key for key in changed)
    with pytest.raises(UnknownNameError, match="no part 'adapter:mx'"):
        align(folder / "recipe.yaml", stage=3, options=AlignOptions(checkpoint=folder / "out"))


@pytest.mark.parametrize("parts", [["adapters"], []])
def test_factors_on_the_linears_that_adapters_stand_beside(parts, folder, tmp_path):
    """With and without training the adapters; what is frozen is proven untouched by the stage itself."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["align"] = {"stages": {1: {**STAGE, "train": parts, "lora": {"language": {"rank": 2}}}}}
    path = folder / f"lora-{len(parts)}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    align(path, stage=1, options=AlignOptions(checkpoint=folder / "out", output=tmp_path / "whole", export=True))
    before, after = tensors(folder / "out"), tensors(tmp_path / "whole")
    assert before.keys() == after.keys()
    changed = {key for key, value in after.items() if not torch.equal(before[key], value)}
    assert any(key.endswith("q_proj.weight") for key in changed)
    assert any(".adapters." in key for key in changed) == bool(parts)
