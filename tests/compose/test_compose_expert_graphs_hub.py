"""ONNX experts and the Hub: fetched alone by name, kept by reference at one commit, published and loaded from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from damc_sources import write_natives
from fake_hub import FakeHub
from hub_client import run_client
from test_compose_expert_graphs import config
from tiny_graphs import write_graph_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM

from mcompose.modeling import register

MERGE = """
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import MergeOptions, merge, push
plan(Path({recipe!r}))
folder = merge(Path({recipe!r}), output=Path({out!r}), options=MergeOptions(quiet=True)).result.folder
push(folder, "tester/model")
result = str(folder)
"""
LOAD = """
import torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained("tester/model", trust_remote_code=True)
model.push_to_hub("tester/again")
x = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
with torch.no_grad():
    result = {name: model.model.experts[name]({"pixel_values": x}).x_ND.tolist() for name in ("vit", "far")}
"""
AGAIN = """
from mcompose.pipeline.write import MergeOptions, merge
result = str(merge(Path({recipe!r}), output=Path({out!r}), options=MergeOptions(quiet=True)).result.folder)
"""


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow  # five processes
def test_from_the_hub_to_the_hub(hub, tmp_path):
    place = write_natives(tmp_path / "natives")
    write_graph_expert(place / "vit", "tokens", file="onnx/model.onnx", data="weights.bin")
    unwanted = {"onnx/model_quantized.onnx": b"other", "pytorch_model.bin": b"pickle"}
    commit = hub.add("maker/vit", files_of(place / "vit") | unwanted)
    graph = {"encoder": "hub:maker/vit", "onnx": "onnx/model.onnx", "class_token": 1}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": "sees", "model": f"local:{place / 'sees'}"}],
        merge={"method": "linear", "seed": 3},
        compose={"experts": {"vit": graph, "far": {**graph, "store": "reference"}}},
        output={"format": "composed"},
    )
    home = tmp_path / "home"
    out, _ = run_client(hub, home, MERGE.format(recipe=str(recipe), out=str(tmp_path / "out")))
    folder = Path(out)
    asked = {request.path.partition(f"/resolve/{commit}/")[2] for request in hub.log} - {""}
    assert {"onnx/model.onnx", "onnx/weights.bin", "preprocessor_config.json"} <= asked
    assert not set(unwanted) & asked
    entry = config(folder)["experts"]["far"]
    assert (entry["reference"]["id"], entry["reference"]["commit"]) == ("maker/vit", commit)
    assert set(entry["reference"]["sha256"]) == {"onnx/model.onnx", "onnx/weights.bin"}
    assert entry["reference"]["sha256"].values() != {""}
    assert f"hub:maker/vit@{commit}" in (folder / "mcompose" / "resolved.yaml").read_text()
    published = hub.repos["tester/model"].files
    assert {"experts/vit.onnx", "experts/vit.onnx_data"} <= set(published)

    told, _ = run_client(hub, tmp_path / "other", LOAD, plain=True)
    assert {"experts/vit.onnx", "experts/vit.onnx_data"} <= set(hub.repos["tester/again"].files)
    x = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    register()
    model = AutoModelForMultimodalLM.from_pretrained(_without_far(folder, tmp_path), trust_remote_code=False)
    with torch.no_grad():
        wanted = model.model.experts["vit"]({"pixel_values": x}).x_ND
    torch.testing.assert_close(torch.tensor(told["vit"]), wanted, rtol=1e-5, atol=1e-5)
    assert len(told["far"]) == len(wanted)

    second = write_recipe(
        tmp_path / "second.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": "old", "model": "hub:tester/model"}],
        merge={"method": "linear"},
        output={"format": "composed"},
    )
    again, _ = run_client(hub, home, AGAIN.format(recipe=str(second), out=str(tmp_path / "again")))
    for name in ("experts/vit.onnx", "experts/vit.onnx_data"):
        assert (Path(again) / name).read_bytes() == (folder / name).read_bytes()


def _without_far(folder: Path, tmp_path: Path) -> Path:
    """The same output with its reference at this machine's copy: this process knows no Hub."""
    table = json.loads((folder / "config.json").read_text())
    table["experts"]["far"]["reference"] |= {"id": str(tmp_path / "natives" / "vit"), "commit": None}
    (folder / "config.json").write_text(json.dumps(table))
    return folder
