"""Experts that are ONNX graphs, from recipe to files and answers: every number against torch, every file on record."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from PIL import Image
from tiny_graphs import WIDTH, expected, write_graph_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.checkpoint import open_checkpoint
from mcompose.ledger import Ledger
from mcompose.merge.diff import diff
from mcompose.merge.verify import verify
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import MergeOptions, merge, push

PICTURES = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 64, 3), np.uint8)) for seed in range(2)]
SOUND = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
TEXT = "USER : <image> what <image>"
FILES = ["experts/ear.onnx", "experts/ocr.onnx", "experts/vit.onnx", "experts/vit.onnx_data"]

ANSWER = """
import json, sys
sys.modules["mcompose"] = None
if sys.argv[2] == "without":
    sys.modules["onnxruntime"] = None
import torch
from transformers import AutoModelForImageTextToText

where = sys.argv[1]
model, report = AutoModelForImageTextToText.from_pretrained(where, trust_remote_code=True, output_loading_info=True)
batch = torch.load(sys.argv[3])
told = {"problems": sorted(str(v) for v in report.values() if v), "module": type(model).__module__}
try:
    with torch.no_grad():
        told["logits"] = model(**batch).logits[0, -1].tolist()
except ImportError as error:
    told["error"] = str(error)
print(json.dumps(told))
"""


def project(projector, x):
    """LayerNorm, Linear, GELU, Linear, written out."""
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * projector.norm.weight + projector.norm.bias
    first, second = projector.layers
    x = x @ first.weight.T + first.bias
    return x * 0.5 * (1 + torch.erf(x / 2**0.5)) @ second.weight.T + second.bias


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("graphs"))
    write_graph_expert(folder / "ocr", "patches", pixels="x")
    write_graph_expert(folder / "vit", "tokens", file="onnx/model.onnx", data="weights.bin", rows=1)
    write_graph_expert(folder / "ear", "frames", pixels="input_features")
    return folder


EXPERTS = {
    "ocr": {
        "onnx": {"file": "model.onnx", "output": "map"}, "projector": "pixel_shuffle", "domain": "text",
    },
    "vit": {"onnx": "onnx/model.onnx", "class_token": 1},
    "ear": {"onnx": "model.onnx", "modality": "audio"},
}  # fmt: skip


def recipe(folder: Path, place: Path, experts: dict, *, sources=("sees", "hears"), **changes) -> Path:
    entries = {name: {"encoder": f"local:{place / name}"} | more for name, more in experts.items()}
    return write_recipe(
        folder / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": name, "model": f"local:{place / name}"} for name in sources],
        merge={"method": "linear", "seed": 3},
        compose={"experts": entries},
        output={"format": "composed"},
        **changes,
    )


def composed(folder: Path, place: Path, experts: dict, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    made = merge(recipe(folder, place, experts, **changes), output=folder / "out", options=MergeOptions(quiet=True))
    return made.result.folder


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composed(tmp_path_factory.mktemp("made"), place, EXPERTS)


@pytest.fixture(scope="module")
def model(made: Path):
    return AutoModelForMultimodalLM.from_pretrained(made, trust_remote_code=False).eval()


@pytest.fixture(scope="module")
def processor(made: Path):
    return AutoProcessor.from_pretrained(made, trust_remote_code=False)


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_the_files_are_copied_bit_for_bit_under_names_of_their_own(made, place):
    assert sorted(path.relative_to(made).as_posix() for path in (made / "experts").iterdir()) == FILES
    sources = ["ear/model.onnx", "ocr/model.onnx", "vit/onnx/model.onnx", "vit/onnx/weights.bin"]
    for file, source in zip(FILES, sources, strict=True):
        assert (made / file).read_bytes() == (place / source).read_bytes()
    entries = config(made)["experts"]
    assert entries["vit"]["onnx"]["data"] == {"weights.bin": "experts/vit.onnx_data"}
    assert entries["ocr"]["onnx"]["inputs"] == {"pixel_values": "x"}
    assert (entries["ocr"]["onnx"]["output"], entries["vit"]["onnx"]["output"]) == ("map", "last_hidden_state")
    assert entries["ocr"]["projector"] == {
        "kind": "pixel_shuffle", "depth": 2, "factor": 2, "width": WIDTH, "grid": [2, 2],
    }  # fmt: skip
    assert {name: entry["tokens"] for name, entry in entries.items()} == {"ocr": 1, "vit": 4, "ear": 50}
    for file in FILES:
        digest = hashlib.sha256((made / file).read_bytes()).hexdigest()
        assert entries[file[8:11]]["onnx"]["sha256"][file] == digest


@torch.no_grad()
def test_the_context_tokens_are_what_torch_makes_of_the_same_weights(model, processor):
    batch = processor(text=TEXT, images=PICTURES, experts=["ocr", "vit"])
    pixels = batch["ocr__pixel_values"], batch["vit__pixel_values"]
    experts = model.model.experts
    ocr = experts["ocr"]({"pixel_values": pixels[0]})
    x = expected("patches", pixels[0])
    folded = x.reshape(1, 1, 4 * WIDTH)  # one block of 2 x 2 neighbours, row by row
    torch.testing.assert_close(ocr.x_ND, project(experts["ocr"].projector, folded)[0], rtol=1e-5, atol=1e-5)
    vit = experts["vit"]({"pixel_values": torch.cat([pixels[1]] * 3)})
    x = project(experts["vit"].projector, expected("tokens", pixels[1])[:, 1:])[0]
    torch.testing.assert_close(vit.x_ND, x.repeat(3, 1), rtol=1e-5, atol=1e-5)
    assert vit.counts == [4, 4, 4]
    sounds = processor(text="USER : <audio>", audio=[SOUND], sampling_rate=8000, experts={"audio": "ear"})
    ear = experts["ear"]({"input_features": sounds["ear__input_features"]})
    x = project(experts["ear"].projector, expected("frames", sounds["ear__input_features"]))[0]
    torch.testing.assert_close(ear.x_ND, x, rtol=1e-5, atol=1e-5)


class _Torch(torch.nn.Module):
    """The same encoder in torch, in the place of a graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, return_dict=True, **given):
        (x,) = given.values()
        return type("Output", (), {"last_hidden_state": expected(self.kind, x)})


@torch.no_grad()
def test_route_generate_and_hidden_tokens_are_those_of_a_torch_encoder(made, model, processor):
    twin = AutoModelForMultimodalLM.from_pretrained(made, trust_remote_code=False).eval()
    for name, kind in (("ocr", "patches"), ("vit", "tokens"), ("ear", "frames")):
        twin.model.experts[name].encoder = _Torch(kind)
    for experts in (["ocr", "vit"], ["vit", None], "auto"):
        batch = processor(text=TEXT, images=PICTURES, experts=experts)
        close = {"rtol": 1e-4, "atol": 1e-4}
        if experts == "auto":
            routed, wanted = model.route(**batch), twin.route(**batch)
            assert routed["routes"] == wanted["routes"]
            torch.testing.assert_close(model(**routed).logits, twin(**wanted).logits, **close)
            forced = model.route(**batch, experts="vit")
            assert forced["routes"] == [["vit"], ["vit"]]
            continue
        torch.testing.assert_close(model(**batch).logits, twin(**batch).logits, **close)
        settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(**batch, **settings), twin.generate(**batch, **settings))
        mask = torch.ones_like(batch["input_ids"])
        mask[:, 3:5] = 0
        hidden = {**batch, "attention_mask": mask, "padding_mask": torch.ones_like(mask), "hidden": "drop"}
        torch.testing.assert_close(model(**hidden).logits, twin(**hidden).logits, **close)


def run_plain(folder, batch, tmp_path, *, how="with"):
    torch.save(dict(batch), tmp_path / "batch.pt")
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(folder), how, str(tmp_path / "batch.pt")],
        capture_output=True, text=True, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_plain_transformers_loads_it_and_gives_the_same(made, model, processor, tmp_path):
    batch = processor(text=TEXT, images=PICTURES, experts=["ocr", "vit"])
    told = run_plain(made, batch, tmp_path)
    assert told["problems"] == []
    assert told["module"].startswith("transformers_modules")
    with torch.no_grad():
        wanted = model(**batch).logits[0, -1]
    torch.testing.assert_close(torch.tensor(told["logits"]), wanted, rtol=1e-5, atol=1e-5)


def test_without_onnxruntime_it_loads_and_the_expert_says_what_it_needs(made, processor, tmp_path):
    batch = processor(text=TEXT, images=PICTURES, experts=["ocr", "vit"])
    told = run_plain(made, batch, tmp_path, how="without")
    assert told["problems"] == []
    assert "logits" not in told
    assert "pip install onnxruntime" in told["error"]
    assert "'ocr'" in told["error"] or "'vit'" in told["error"]


@torch.no_grad()
def test_a_saved_model_and_a_pickled_one_keep_the_files(made, processor, tmp_path):
    shutil.copytree(made, tmp_path / "first")
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "first", trust_remote_code=False).eval()
    batch = processor(text=TEXT, images=PICTURES, experts=["ocr", "vit"])
    wanted = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "first")  # onto itself
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved", trust_remote_code=False).eval()
    assert torch.equal(again(**batch).logits, wanted)
    assert sorted(path.name for path in (tmp_path / "saved" / "experts").iterdir()) == [Path(f).name for f in FILES]
    data = pickle.dumps(model.model.experts)
    shutil.rmtree(tmp_path / "first")
    assert torch.equal(
        pickle.loads(data)["vit"]({"pixel_values": batch["vit__pixel_values"]}).x_ND,
        again.model.experts["vit"]({"pixel_values": batch["vit__pixel_values"]}).x_ND,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_runs_all_the_way(made, processor, dtype):
    model = AutoModelForMultimodalLM.from_pretrained(made, dtype=dtype, trust_remote_code=False)
    model.train()
    logits = model(**processor(text=TEXT, images=PICTURES, experts=["ocr", "vit"])).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert not any(p.requires_grad for expert in model.model.experts.values() for p in expert.encoder.parameters())


def test_ledger_lock_verify_and_card_know_the_files(made):
    rows = {row.name: row for row in Ledger.read(made).files}
    assert sorted(rows) == FILES
    row = rows["experts/vit.onnx_data"]
    assert (row.action, row.part, row.sources, row.note) == (
        "copied", "expert:vit", ("vit",), "was 'onnx/weights.bin'",
    )  # fmt: skip
    locked = json.loads((made / "mcompose" / "lock.json").read_text())
    for name in FILES:
        assert locked["files"][name]["sha256"] == rows[name].sha256
    assert set(locked["sources"]["vit"]["files"]) == {"onnx/model.onnx", "onnx/weights.bin", "preprocessor_config.json"}
    assert verify(made).problems == ()
    card = (made / "README.md").read_text()
    assert "- `experts/ocr.onnx` (expert:ocr): copied as it was" in card
    assert "# pip install onnxruntime" in card


def test_a_damaged_or_missing_file_is_told_by_verify_and_at_load(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    path = tmp_path / "out" / "experts" / "vit.onnx_data"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    (problem,) = verify(tmp_path / "out").problems
    assert (problem.where, problem.sentence) == (
        "experts/vit.onnx_data", "was changed: its content has another hash",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"vit.onnx_data is not the file that the expert 'vit' was composed with"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    lock = tmp_path / "out" / "mcompose" / "lock.json"
    table = json.loads(lock.read_text())
    table["files"]["experts/vit.onnx_data"]["sha256"] = hashlib.sha256(raw).hexdigest()
    lock.write_text(json.dumps(table))
    (problem,) = verify(tmp_path / "out").problems
    assert "has another hash in the ledger than in the lock" in problem.sentence
    path.unlink()
    assert "is missing" in {problem.sentence for problem in verify(tmp_path / "out").problems}
    with pytest.raises(OSError, match=r"experts/vit\.onnx_data"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_a_composed_source_keeps_its_graphs(made, place, tmp_path):
    write_again = write_recipe(
        tmp_path / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": "old", "model": f"local:{made}", "modalities": ["image"]}],
        merge={"method": "linear"},
        output={"format": "composed"},
    )
    again = merge(write_again, output=tmp_path / "out", options=MergeOptions(quiet=True)).result.folder
    kept = [file for file in FILES if "ear" not in file]
    assert sorted(path.relative_to(again).as_posix() for path in (again / "experts").iterdir()) == kept
    for file in kept:
        assert (again / file).read_bytes() == (made / file).read_bytes()
    assert config(again)["experts"]["vit"] == config(made)["experts"]["vit"]
    assert {row.sources for row in Ledger.read(again).files} == {("old",)}
    assert verify(again).problems == ()
    states = {t.name: t.state for t in diff(open_checkpoint(made), open_checkpoint(again)).tensors if "onnx" in t.name}
    assert states == {file: "equal" if file in kept else "only_a" for file in FILES}


def test_push_uploads_the_files(made):
    report = push(made, "tester/model", dry_run=True)
    assert {file.path for file in report.files} >= set(FILES)
    assert not [name for name in report.skipped if "onnx" in name]


def test_a_plan_tells_what_is_read_and_copied(place, tmp_path):
    report = plan(recipe(tmp_path, place, EXPERTS))
    told = report.to_dict()["experts"]
    size = (place / "vit" / "onnx" / "model.onnx").stat().st_size
    assert told["vit"]["encoder"] == "ONNX value 'last_hidden_state'"
    assert told["vit"]["files"]["experts/vit.onnx"] == size
    assert "'ocr' (ONNX value 'map', 1 tokens an item, copies" in report.to_text()


def test_the_same_bytes_again(made, place, tmp_path):
    again = composed(tmp_path / "again", place, EXPERTS)
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (made / name).read_bytes() == (again / name).read_bytes(), name
