"""Composed checkpoints with experts: saved, loaded by plain transformers without mcompose, and refused when wrong."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from composed_folders import config_for, read_json
from expert_models import (
    BEGIN,
    IMAGE,
    SLOT,
    block,
    charts,
    fields,
    image_router,
    maths,
    named,
    patches,
    picked,
    pixels,
    squares,
    two,
    write_experts_folder,
)
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_configs import TOKENS
from tiny_models import tiny_model
from transformers import AutoModel

from mcompose.modeling import ComposedConfig, ComposedForConditionalGeneration, add_mask_token, register

register()

IM = [IMAGE] * 4
FULL = torch.tensor([[1, *IM, *block("charts", 6), 5, *IM, *block("maths", 4), 6]])

ANSWER = """
import json, sys
sys.modules["mcompose"] = None
import torch
from transformers import AutoModelForImageTextToText

where = sys.argv[1]
model, report = AutoModelForImageTextToText.from_pretrained(where, trust_remote_code=True, output_loading_info=True)
batch = torch.load(where + "/batch.pt")
with torch.no_grad():
    out = model.route(**batch)
    logits = model(**out).logits
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
frozen = not any(p.requires_grad for e in model.model.experts.values() for p in e.encoder.parameters())
print(json.dumps({
    "logits": logits[0, -1].tolist(), "tokens": tokens[0].tolist(), "routes": out["routes"], "frozen": frozen,
    "problems": sorted(str(v) for v in report.values() if v), "module": type(model).__module__,
    "classes": model.config.routers["image"]["classes"],
}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_experts_folder(tmp_path_factory.mktemp("experts") / "model")


def test_names_on_disk(saved):
    folder, _, encoders, _ = saved
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for name, encoder in encoders.items():
            for key, tensor in encoder.state_dict().items():
                assert torch.equal(file.get_tensor(f"model.experts.{name}.encoder.{key}"), tensor)
    assert {"model.domain_tokens", "model.routers.image.weight", "model.mask_token"} <= names
    assert "model.experts.maths.projector.norm.weight" in names


@torch.no_grad()
def test_loaded_again_it_is_the_same(saved):
    folder, model, _, batch = saved
    again, report = ComposedForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert again.config.routers == model.config.routers
    by_name = {**pixels(2), **named("charts", picked(patches(2), [0])), **named("maths", picked(squares(2), [1]))}
    wanted = model(input_ids=FULL, **by_name).logits
    assert torch.equal(again(input_ids=FULL, **by_name).logits, wanted)
    out = again.route(**batch)
    assert out["routes"] == [["charts"], ["maths"]]
    assert torch.equal(again(**out).logits, wanted)
    assert not any(p.requires_grad for e in again.model.experts.values() for p in e.encoder.parameters())
    assert all(p.requires_grad for e in again.model.experts.values() for p in e.projector.parameters())


def test_plain_transformers_loads_it(saved, tmp_path):
    folder, model, _, batch = saved
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    made = subprocess.run(
        [sys.executable, "-c", ANSWER, str(folder)], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]
    answer = json.loads(made.stdout.splitlines()[-1])
    with torch.no_grad():
        logits = model(**model.route(**batch)).logits
        tokens = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    torch.testing.assert_close(torch.tensor(answer["logits"]), logits[0, -1], rtol=1e-5, atol=1e-5)
    assert answer["tokens"] == tokens[0].tolist()
    assert answer["routes"] == [["charts"], ["maths"]]
    assert answer["classes"] == ["none", "maths", "charts"]
    assert answer["frozen"]
    assert answer["problems"] == []
    assert answer["module"].startswith("transformers_modules")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_runs_all_the_way(saved, dtype):
    folder, _, _, batch = saved
    model = ComposedForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    out = model.route(**batch)
    assert out["routes"] == [["charts"], ["maths"]]
    logits = model(**out).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_a_plain_composition_says_nothing_of_experts():
    source = tiny_model("llava")
    config = config_for(source, {"sees": source}, {"sees": ["image"]}, {"image": TOKENS["image"]})
    words = ("expert", "router", "domain", "mask_token")
    assert not [key for key in config.to_dict() if any(word in key for word in words)]
    assert config.experts == config.routers == {}


def test_what_a_config_says_of_experts_is_kept(saved):
    folder, model, _, _ = saved
    written = read_json(folder / "config.json")
    assert written["routers"]["image"]["classes"] == ["none", "maths", "charts"]
    assert written["domain_token_ids"] == [BEGIN, BEGIN + 1]
    assert "router_loss_weight" not in written
    again = ComposedConfig.from_pretrained(folder)
    assert again.experts == model.config.experts
    assert again.to_dict() == ComposedConfig.from_dict(again.to_dict()).to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": {"maths": maths(modality="audio")}}, "stands beside audio items, and no source serves them"),
        ({"experts": {"maths": maths(modality="video")}}, "has the modality 'video'"),
        ({"experts": {"maths": maths(projector={"kind": "conv"})}}, "has the kind 'conv'"),
        ({"experts": {"maths": maths(tokens=0)}}, "has 0 tokens"),
        ({"experts": {"charts": charts(tokens="attention_mask")}}, "exactly when padding is dropped"),
        ({"experts": {"charts": charts(padding="drop")}}, "exactly when padding is dropped"),
        (
            {"experts": {"charts": charts(padding="mask", projector={"kind": "pixel_shuffle", "factor": 2})}},
            "its padding can only be kept",
        ),
        ({"domain_token_ids": [1]}, "two domain_token_ids"),
        ({"domain_token_ids": [SLOT, 7]}, "must all differ"),
        ({"routers": image_router("charts", "tables")}, "they are 'none' and then experts of image"),
        ({"routers": {"image": {**image_router("maths")["image"], "classes": ["maths"]}}}, "'none' and then"),
        ({"routers": {"audio": image_router("maths")["image"]}}, "no source of this composition serves it"),
        ({"routers": image_router("maths", rule={"kind": "dice"})}, "has the rule 'dice'"),
        ({"routers": image_router("maths"), "expert_slot_id": None}, "needs an expert_slot_id"),
    ],
)
def test_fields_that_cannot_work_are_refused(changes, message):
    source = tiny_model("llava")
    made = fields(changes.get("experts", {"maths": maths()}))
    made.update(changes)
    with pytest.raises(ValueError, match=message):
        config_for(source, {"sees": source}, {"sees": ["image"]}, {"image": TOKENS["image"]}, **made)


@pytest.mark.parametrize("name", ["sees", "none", "auto", "a__b", "1st"])
def test_names_that_cannot_be_told_apart_are_refused(name):
    source = tiny_model("llava")
    made = {**fields({}), "experts": {name: maths()}, "expert_token_ids": {name: 1013}}
    with pytest.raises(ValueError, match="must be letters, digits"):
        config_for(source, {"sees": source}, {"sees": ["image"]}, {"image": TOKENS["image"]}, **made)


@torch.no_grad()
def test_a_mask_token_begins_as_the_mean_of_the_table():
    model, _ = two()
    add_mask_token(model)
    assert model.config.to_dict()["mask_token"] is True
    torch.testing.assert_close(model.model.mask_token, model.get_input_embeddings().weight.mean(0))
    model.model.mask_token.zero_()
    add_mask_token(model)
    assert not model.model.mask_token.any()


@torch.no_grad()
def test_an_encoder_can_stay_where_it_is(tmp_path):
    """Its tensors are not in the checkpoint; a changed file is refused."""
    _, encoders = two()
    home = tmp_path / "native"
    home.mkdir()
    state = {f"model.encoder.{key}": value for key, value in encoders["maths"].state_dict().items()}
    save_file({**state, "model.decoder.weight": torch.zeros(3)}, home / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()
    reference = {"id": str(home), "commit": None, "sha256": digest, "prefix": "model.encoder."}
    model, _ = two(maths={"reference": reference})
    model.save_pretrained(tmp_path / "made")
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert not [name for name in names if name.startswith("model.experts.maths.encoder.")]
    assert [name for name in names if name.startswith("model.experts.charts.encoder.")]
    again, report = ComposedForConditionalGeneration.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(report.values())
    by_name = {**pixels(2), **named("charts", picked(patches(2), [0])), **named("maths", picked(squares(2), [1]))}
    assert torch.equal(again(input_ids=FULL, **by_name).logits, model(input_ids=FULL, **by_name).logits)
    assert not any(p.requires_grad for p in again.model.experts["maths"].encoder.parameters())
    body = AutoModel.from_pretrained(tmp_path / "made")
    assert torch.equal(body.experts["maths"](squares(1)).x_ND, model.model.experts["maths"](squares(1)).x_ND)
    config = read_json(tmp_path / "made" / "config.json")
    config["experts"]["maths"]["reference"]["sha256"] = "0" * 64
    (tmp_path / "made" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="is not the file that the expert 'maths' was composed with"):
        ComposedForConditionalGeneration.from_pretrained(tmp_path / "made")
    config["experts"]["maths"]["reference"] = {**reference, "prefix": "encoder."}
    (tmp_path / "made" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tensors of the expert 'maths' are not in"):
        ComposedForConditionalGeneration.from_pretrained(tmp_path / "made")


@torch.no_grad()
def test_an_encoder_stays_in_files_that_spell_its_tensors_otherwise(tmp_path):
    """Also where two names are exchanged: what ``keys`` says of a tensor stands above the prefix."""
    _, encoders = two()
    one, other, plain = (
        f"encoder.layers.{k}.layer_norm1.{what}" for k, what in ((0, "weight"), (1, "weight"), (0, "bias"))
    )
    keys = {one: f"v.{other}", other: f"v.{one}", plain: "elsewhere"}
    native = encoders["maths"].state_dict()
    state = {keys.get(key, f"v.{key}"): value for key, value in native.items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    reference = {"id": str(tmp_path), "commit": None, "sha256": digest, "prefix": "v.", "keys": keys}
    model, _ = two(maths={"reference": reference})
    model.save_pretrained(tmp_path / "made")
    again = ComposedForConditionalGeneration.from_pretrained(tmp_path / "made")
    found = again.model.experts["maths"].encoder.state_dict()
    assert not torch.equal(native[one], native[other])
    assert all(torch.equal(found[key], native[key]) for key in found)
    config = read_json(tmp_path / "made" / "config.json")
    config["experts"]["maths"]["reference"]["keys"][plain] = "nowhere.bias"
    (tmp_path / "made" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 tensors of the expert 'maths' are not in .*, nowhere\.bias for one"):
        ComposedForConditionalGeneration.from_pretrained(tmp_path / "made")
