"""Stages over a composition whose expert is an ONNX graph: it stays frozen, outside the delta, and in the export."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from align_data_samples import picture, write_lines
from damc_sources import write_natives
from safetensors import safe_open
from tiny_graphs import write_graph_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.errors import UnknownNameError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.pipeline.align import AlignOptions, align
from mcompose.pipeline.write import MergeOptions, merge

STAGE = {
    "train": ["projectors", "router"], "steps": 2, "batch_size": 2, "lr": 1e-2, "max_length": 64, "warmup": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    place = write_natives(folder / "natives")
    write_graph_expert(place / "vit", "tokens", data="weights.bin")
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "a cat"}]
    data = []
    for domain in ("vit", "photos"):
        shades = [str(picture(folder / "data" / f"{domain}{k}.png", 30 * k)) for k in range(2)]
        rows = [{"images": [shade], "conversations": turns} for shade in shades]
        data.append({"path": str(write_lines(folder / "data" / f"{domain}.jsonl", rows)), "domain": domain})
    recipe = write_recipe(
        folder / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": "sees", "model": f"local:{place / 'sees'}"}],
        merge={"method": "linear", "seed": 3},
        compose={"experts": {"vit": {"encoder": f"local:{place / 'vit'}", "onnx": "model.onnx"}}},
        align={"stages": {1: {**STAGE, "data": data}, 2: {**STAGE, "train": ["expert:vit"], "data": data}}},
        output={"dir": "out", "format": "composed"},
    )
    merge(recipe, options=MergeOptions(quiet=True))
    return recipe


def test_a_stage_trains_the_projector_alone_and_the_export_keeps_the_graph(home, tmp_path):
    result = align(home, stage=1, options=AlignOptions(quiet=True, export=True, output=tmp_path / "whole"))
    assert result is not None
    parent, whole = home.parent / "out", tmp_path / "whole"
    with safe_open(home.parent / "out.stages" / "1" / "delta.safetensors", "np") as delta:
        keys = list(delta.keys())
    assert any("experts.vit.projector" in key for key in keys)
    assert not any("encoder" in key for key in keys)
    for name in ("experts/vit.onnx", "experts/vit.onnx_data"):
        assert (whole / name).read_bytes() == (parent / name).read_bytes()
    assert Ledger.read(whole).files == Ledger.read(parent).files != ()
    assert verify(whole).problems == ()
    model = AutoModelForMultimodalLM.from_pretrained(whole, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(whole, trust_remote_code=False)
    batch = processor(text="<image> what", images=[str(picture(tmp_path / "p.png", 50))], experts=["vit"])
    old = AutoModelForMultimodalLM.from_pretrained(parent, trust_remote_code=False)
    with torch.no_grad():
        new, before = (m.model.experts["vit"]({"pixel_values": batch["vit__pixel_values"]}).x_ND for m in (model, old))
        assert model(**batch).logits.isfinite().all()
    assert not torch.equal(new, before)


def test_a_graph_cannot_be_trained(home):
    with pytest.raises(UnknownNameError, match="has no part 'expert'"):
        align(home, stage=2, options=AlignOptions(quiet=True, checkpoint=home.parent / "out"))


def test_the_recipe_in_the_output_is_the_one_that_was_read(home):
    resolved = yaml.safe_load((home.parent / "out" / "mcompose" / "resolved.yaml").read_text())
    assert resolved["compose"]["experts"]["vit"]["onnx"] == {"file": "model.onnx"}
    assert json.loads((home.parent / "out" / "config.json").read_text())["experts"]["vit"]["skip"] == 0
