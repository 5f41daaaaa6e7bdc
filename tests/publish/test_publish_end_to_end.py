"""A real model goes to the Hub and comes back: by plain transformers, by ``fetch``, bit for bit."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_hub import READ_TOKEN, FakeHub
from hub_client import run_client
from publish_samples import llava_output

PUSH = """
from mcompose.publish import push
result = push(Path({folder!r}), "tester/sees-and-codes", private=True).to_dict()
"""

ANSWER = """
import hashlib, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({path!r})
model = AutoModelForImageTextToText.from_pretrained({path!r}).eval()
picture = Image.frombytes("RGB", (28, 28), bytes(range(256)) * 9 + bytes(48))
inputs = processor(images=picture, text="<image> What do you see?", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
result = {{"logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(), "sum": logits.double().abs().sum().item(),
           "shape": list(logits.shape), "class": type(model).__name__}}
"""

FETCH = """
from mcompose.checkpoint import open_checkpoint
from mcompose.refs import ModelRef
opened = open_checkpoint(ModelRef.parse("hub:tester/sees-and-codes"), weights={weights})
result = {{
    "commit": opened.commit, "licence": opened.licence, "base_model": opened.base_model,
    "has_weights": opened.has_weights, "weights": [(opened.folder / n).is_file() for n in opened.weight_files],
    "sidecars": {{p.name: p.read_bytes().hex() for p in opened.sidecars()}},
    "tensors": {{k: [e.dtype, list(e.shape), e.offset, e.nbytes] for k, e in opened.tensors.items()}},
}}
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A LLaVA that was pushed to a private repository."""
    home = tmp_path_factory.mktemp("push")
    folder = llava_output(home / "out")
    with FakeHub() as hub:
        report, _ = run_client(hub, home / "cache", PUSH.format(folder=str(folder)))
        yield hub, folder, report


def test_publish_end_to_end_plain_transformers_gives_the_same_logits(pushed, tmp_path):
    hub, folder, _ = pushed
    here, _ = run_client(hub, tmp_path / "a", ANSWER.format(path=str(folder)), plain=True)
    hub.log.clear()
    there, _ = run_client(hub, tmp_path / "b", ANSWER.format(path="tester/sees-and-codes"), plain=True)
    assert hub.sent("model.safetensors") == (folder / "model.safetensors").stat().st_size
    assert here == there
    assert here["class"] == "LlavaForConditionalGeneration"
    assert here["shape"][2] == 32
    assert here["sum"] > 0


def test_publish_end_to_end_fetched_files_are_the_pushed_files(pushed, tmp_path):
    hub, folder, report = pushed
    code = """
from mcompose.checkpoint.hub import fetch
from mcompose.refs import ModelRef
snapshot = fetch(ModelRef.parse("hub:tester/sees-and-codes"), weights=True)
result = [str(snapshot.folder), dict(snapshot.digests), dict(snapshot.files)]
"""
    (fetched, digests, sizes), _ = run_client(hub, tmp_path / "c", code, token=READ_TOKEN)
    names = {p.relative_to(fetched).as_posix() for p in Path(fetched).rglob("*") if p.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "README.md"} <= names
    for name in names:
        assert (Path(fetched) / name).read_bytes() == (folder / name).read_bytes()
    weights = (folder / "model.safetensors").read_bytes()
    assert digests == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert {f["path"]: f["size"] for f in report["files"]} == {k: v for k, v in sizes.items() if k != ".gitattributes"}


def test_publish_end_to_end_opens_as_a_source_with_and_without_weights(pushed, tmp_path):
    hub, folder, report = pushed
    hub.log.clear()
    light, _ = run_client(hub, tmp_path / "d", FETCH.format(weights=False), token=READ_TOKEN)
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert hub.sent("model.safetensors") <= max(header, 100_000)
    whole, _ = run_client(hub, tmp_path / "d", FETCH.format(weights=True), token=READ_TOKEN)
    assert (light["has_weights"], light["weights"]) == (False, [False])
    assert (whole["has_weights"], whole["weights"]) == (True, [True])
    for key in ("commit", "licence", "base_model", "sidecars", "tensors"):
        assert light[key] == whole[key]
    assert light["commit"] == report["commit"]
    assert light["licence"] == "apache-2.0"
    assert light["base_model"] == "org/sees, org/codes"
    assert json.loads((folder / "mcompose" / "lock.json").read_text())["files"]["config.json"]["size"]
