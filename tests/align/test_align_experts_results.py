"""Two stages by preset, their export and reload; tiles of InternVL; two processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from align_data_samples import picture, write_lines
from align_experts import EXPERTS, build_experts, rows_of, values, write_domains
from transformers import AutoModelForMultimodalLM

from mcompose.align.load import load_model, load_processor
from mcompose.align.results.lineage import open_lineage
from mcompose.align.stage import plan_steps
from mcompose.align.stage_data import open_data
from mcompose.pipeline.align import AlignOptions, align
from mcompose.recipe import Stage

SMALL = {"batch_size": 6, "steps": 2, "lr": 1e-3, "max_length": 128, "accumulation": 2}


def write_recipe(folder, stages):
    recipe = {
        "schema": 1, "name": "tiny", "sources": [{"name": "sees", "model": "local:sees"}],
        "merge": {"method": "naivemc"}, "align": {"stages": stages}, "output": {"dir": "out", "format": "composed"},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts-results")
    build_experts(folder)
    data = write_domains(folder / "data")
    stages = {
        1: {"preset": "chimera-stage1", "data": data, **SMALL},
        2: {"preset": "chimera-stage2", "data": data, **SMALL, "gscm": 0.5},
    }
    return write_recipe(folder, stages)


def test_two_stages_by_preset_are_exported_and_loaded_again(home, tmp_path):
    first = align(home, stage=1, options=AlignOptions(quiet=True))
    assert first is not None
    assert set(first.record["trained"]) == {"projectors", "router", "separators"}
    assert {"language", "embedding", "head", "encoder:sees", "expert:maths"} <= set(first.record["frozen"])
    second = align(home, stage=2, options=AlignOptions(quiet=True, export=True, output=tmp_path / "whole"))
    assert second is not None
    assert set(second.record["trained"]) == {"projectors", "router", "separators", "llm"}
    assert set(second.record["frozen"]) == {"encoder:sees", "expert:maths", "expert:charts"}
    lineage = open_lineage(home.parent / "out.stages" / "2")
    model = load_model(lineage, precision="float32")
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    assert again.config.routers["image"]["classes"] == ["none", *EXPERTS]
    processor = load_processor(tmp_path / "whole")
    images = [[picture(tmp_path / f"{shade}.png", shade)] for shade in (20, 100)]
    batch = processor(text=["<image> what", "<image> is it ?"], images=images, experts=["charts", "maths"])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    parent, whole = (values(folder / "model.safetensors") for folder in (home.parent / "out", tmp_path / "whole"))
    assert parent.keys() == whole.keys()
    for name, tensor in parent.items():
        frozen = ".encoder." in name or "vision_tower" in name
        assert torch.equal(tensor, whole[name]) or not frozen, name
    assert not torch.equal(parent["model.domain_tokens"], whole["model.domain_tokens"])


def torchrun(recipe, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "mcompose", "align", str(recipe), "--stage", "3", "-o", str(folder), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)


def test_two_processes_make_the_steps_of_one(home, tmp_path):
    """Masks are addressed by position, and the router's loss is that of the step."""
    one = yaml.safe_load(home.read_text())["align"]["stages"][2]
    recipe = write_recipe(home.parent, {3: {**one, "router": {"class_weights": "balanced"}, "steps": 3}})
    options = AlignOptions(quiet=True, checkpoint=home.parent / "out", output=tmp_path / "one")
    align(recipe, stage=3, options=options)
    result = torchrun(recipe, tmp_path / "two")
    assert result.returncode == 0, result.stderr[-3000:]
    for key in ("loss", "router_loss", "router_accuracy", "hidden"):
        rows = [[row[key] for row in rows_of(tmp_path / name / "log.jsonl")] for name in ("one", "two")]
        torch.testing.assert_close(rows[1], rows[0], rtol=1e-5, atol=1e-6)
    assert min(rows[0]) > 0  # something is hidden in every step, and counted once
    first, second = (values(tmp_path / name / "delta.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=2e-6)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """InternVL beside the experts, with wide pictures of charts."""
    folder = tmp_path_factory.mktemp("tiled")
    out, _ = build_experts(folder, native="internvl")
    rows = []
    for number in range(4):
        from PIL import Image

        path = picture(folder / f"{number}.png", 60 + 5 * number)
        Image.open(path).resize((168, 56)).save(path)
        turns = [{"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": "a b"}]
        rows.append({"conversations": turns, "image": path.name})
    data = [{"path": str(write_lines(folder / "charts.jsonl", rows)), "domain": "charts"}]
    return out, data


@pytest.mark.parametrize(("limit", "tiles"), [(1, 1), (2, 3), (6, 4)])
def test_tiles_are_limited_in_a_stage_and_hidden_whole(tiled, limit, tiles):
    """A picture three tiles wide: that many and a thumbnail, or one tile alone."""
    out, data = tiled
    gscm = {"ratio": 0.5, "unit": "tile", "include_thumbnail": False}
    stage = Stage(train=["projectors"], data=data, tiles=limit, gscm=gscm, steps=1, batch_size=4, max_length=128)
    lineage = open_lineage(out)
    opened = open_data(stage, load_processor(out), folder=out, config=lineage.config)
    plan = plan_steps(stage, samples=4)
    masked = opened.batches(stage, load_model(lineage, precision="float32"), plan=plan)
    ordered = opened.ordered(stage, plan)
    batch = masked([ordered[position] for position in range(4)])
    image_BL = batch["mm_token_type_ids"] == 1 if "mm_token_type_ids" in batch else None
    image_BL = batch["input_ids"] == opened.processor.ids["image"] if image_BL is None else image_BL
    assert image_BL.sum(-1).tolist() == [4 * tiles] * 4
    assert batch["sees__pixel_values"].shape[0] == 4 * tiles
    hidden_BL = (batch.get("padding_mask", batch["attention_mask"]) - batch["attention_mask"]).bool()
    by_tile = hidden_BL[image_BL].reshape(4, tiles, 4)
    assert torch.equal(by_tile.all(-1), by_tile.any(-1))
    candidates = tiles - 1 if tiles > 1 else 1
    assert by_tile.any(-1).sum(-1).tolist() == [candidates // 2] * 4
    assert not by_tile[:, -1].any()


def test_the_limit_afterwards_is_written_into_the_export(tiled, tmp_path):
    out, data = tiled
    stage = {"train": ["projectors", "router"], "data": data, "tiles": {"limit": 2, "inference": 5}, "steps": 1}
    recipe = write_recipe(out.parent, {1: {**stage, "batch_size": 4, "max_length": 128}})
    align(recipe, stage=1, options=AlignOptions(quiet=True, export=True, output=tmp_path / "whole"))
    files = [folder / "processors" / "sees" / "preprocessor_config.json" for folder in (out, tmp_path / "whole")]
    before, after = (json.loads(file.read_text()) for file in files)
    assert (before["max_patches"], before["crop_to_patches"]) == (12, False)
    assert after == {**before, "max_patches": 5, "crop_to_patches": True}
    images = load_processor(tmp_path / "whole").processors["sees"].image_processor
    assert (images.max_patches, images.crop_to_patches) == (5, True)
