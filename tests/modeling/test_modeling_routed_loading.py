"""Routed checkpoints on disk: names, fields, loading by plain transformers without mcompose, and roles for freezing."""

import os
import sys
from pathlib import Path

import pytest
import torch
from composed_folders import read_json
from routed_models import GROUPS, PREFIXES, routed, write_routed_folder
from safetensors import safe_open
from test_modeling_loading import answer, check, cloud, image
from tiny_models import TINY

from mcompose.modeling import (
    ComposedConfig,
    ComposedForConditionalGeneration,
    ComposedProcessor,
    add_groups,
    base_key,
    composed_config,
    fold_text,
    generate_files,
    group_keys,
    group_parameters,
    group_specs,
    stored_source,
)
from mcompose.modeling.groups.linear import routed_linears

ROLES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
ROLES += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image and a points source, with a low-rank text group, a dense, a low-rank one, and vectors around items."""
    return write_routed_folder(tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def wanted(folder):
    processor = ComposedProcessor.from_pretrained(folder)
    model = ComposedForConditionalGeneration.from_pretrained(folder)
    inputs = processor(text="USER : <image> what <points> ASSISTANT :", images=image(), points=cloud())
    assert inputs["mm_token_type_ids"].tolist()[0].count(1) == 4 + 2
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=3)
        logits = model(**inputs).logits[0, -1]
        for name, parameter in model.named_parameters():
            if ".groups.image." in name or "prefix_tokens.points" in name:
                parameter.zero_()
        assert not torch.allclose(model(**inputs).logits[0, -1], logits, atol=1e-3)
    return logits, tokens[0]


def test_a_routed_folder_loads_without_mcompose(folder, wanted, tmp_path):
    check(answer(sys.executable, folder, tmp_path), wanted)
    names = {path.name for path in folder.glob("*.py")}
    assert names == set(generate_files("composed"))
    assert "# groups/linear.py" in (folder / "modeling_mcompose.py").read_text(encoding="utf-8").splitlines()


@pytest.mark.floor
def test_a_routed_folder_loads_on_the_oldest_supported_transformers(folder, wanted, tmp_path):
    python = os.environ.get("MCOMPOSE_FLOOR_PYTHON", "")
    if not python or not Path(python).exists():
        pytest.skip("MCOMPOSE_FLOOR_PYTHON names no interpreter with the oldest supported transformers")
    check(answer(python, folder, tmp_path), wanted)


def test_names_on_disk_are_the_documented_ones(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config = read_json(folder / "config.json")
    assert config["routed_groups"] == {
        "text": {"kind": "low_rank", "rank": 4, "scale": 2.0},
        "points": {"kind": "low_rank", "rank": 4, "scale": 2.0},
        "image": {"kind": "dense"},
    }
    specs = group_specs(config["routed_groups"])
    expected = set()
    for layer in range(2):
        for role in ROLES:
            linear = f"model.language_model.layers.{layer}.{role}"
            expected.add(f"{linear}.weight")
            for name, spec in specs.items():
                expected |= set(group_keys(linear, name, spec))
    found = {name for name in shapes if ".layers." in name and "language_model" in name and "norm" not in name}
    assert found == expected
    q = "model.language_model.layers.0.self_attn.q_proj"
    assert shapes[f"{q}.groups.points.lora_A.weight"] == (4, 32)
    assert shapes[f"{q}.groups.image.weight"] == (32, 32)
    assert shapes["model.prefix_tokens.image"] == (2, 32)
    assert shapes["model.suffix_tokens.points"] == (2, 32)
    assert config["prefix_token_ids"].keys() == {"image", "points"}
    assert config["suffix_tokens"] == {"points": 2}


@pytest.mark.parametrize("groups", GROUPS)
@torch.no_grad()
def test_saving_and_loading_keeps_everything(groups, tmp_path):
    model, inputs = routed(groups, prefixes=True, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again, report = ComposedForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.config.routed_base == ("separate" if groups == "separate" else "shared")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored == set(model.state_dict())
    linear = "model.language_model.layers.1.mlp.down_proj"
    assert (base_key(linear) in stored) == (groups == "separate")


def test_a_plain_composition_says_nothing_of_groups():
    entry = stored_source(TINY["llava"](), modalities=["image"])
    config = composed_config(TINY["llava"]().get_text_config(), {"sees": entry}, placeholders={"image": 120})
    assert not {key for key in config.to_dict() if "routed" in key or "prefix" in key or "suffix" in key}
    assert config.routed_groups == {}
    model = ComposedForConditionalGeneration(config)
    assert not list(routed_linears(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_configuration_with_groups_reads_itself(tmp_path):
    model, _ = routed("separate", prefixes=True)
    model.config.save_pretrained(tmp_path)
    again = ComposedConfig.from_pretrained(tmp_path)
    assert again.routed_groups == model.config.routed_groups
    assert {key: getattr(again, key) for key in PREFIXES} == PREFIXES
    fresh = ComposedForConditionalGeneration(again)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())


@pytest.mark.parametrize(
    ("groups", "base", "message"),
    [
        ({"smell": {"kind": "dense"}}, "shared", "unknown modality 'smell'"),
        ({"video": {"kind": "dense"}}, "shared", "no source of this composition serves it"),
        ({"image": {"kind": "sparse"}}, "shared", "kind 'sparse'; known: dense, low_rank"),
        ({"image": {"kind": "low_rank"}}, "shared", "needs a rank"),
        ({"image": {"kind": "low_rank", "rank": 4, "alpha": 8}}, "shared", "unknown field 'alpha'"),
        ({"image": {"kind": "low_rank", "rank": 4, "scale": "2"}}, "shared", "scale of group 'image'"),
        ({"image": {"kind": "dense"}}, "elsewhere", "shared or separate"),
        ({"image": {"kind": "dense"}}, "separate", "nothing would use the base"),
        ({"text": {"kind": "low_rank", "rank": 1}}, "separate", "cannot be low_rank"),
    ],
)
def test_groups_that_cannot_work_are_refused(groups, base, message):
    entry = stored_source(TINY["llava"](), modalities=["image"])
    text = TINY["llava"]().get_text_config()
    with pytest.raises(ValueError, match=message):
        composed_config(text, {"sees": entry}, placeholders={"image": 120}, routed_groups=groups, routed_base=base)


def test_a_group_is_added_once():
    model, _ = routed("one")
    with pytest.raises(ValueError, match="a group for 'image' already"):
        add_groups(model, ["audio", "image"])


def test_roles_are_disjoint_and_name_every_routed_parameter():
    linears = 2 * len(ROLES)
    model, _ = routed("shared-text", prefixes=True)
    roles = group_parameters(model)
    sizes = {role: len(names) for role, names in roles.items()}
    vectors = {"image.prefix": 1, "audio.prefix": 1, "image.suffix": 1}
    assert sizes == {"base": linears, **dict.fromkeys(("text", "image", "audio"), 2 * linears), **vectors}
    assert roles["image.suffix"] == ["model.suffix_tokens.image"]
    every = [name for names in roles.values() for name in names]
    assert len(set(every)) == len(every)
    inside = {name for name, _ in model.named_parameters() if "_proj." in name and ".language_model." in name}
    assert {name for name in every if "fix_tokens" not in name} == inside
    fold_text(model)
    folded = group_parameters(model)
    assert {role: len(names) for role, names in folded.items()} == {
        "text": linears, "base": linears, "image": 2 * linears, "audio": 2 * linears, **vectors,
    }  # fmt: skip
    assert all(name.endswith("_proj.weight") for name in folded["text"])
    assert all(name.endswith("_proj.base.weight") for name in folded["base"])
    dense, _ = routed("dense")
    assert {role: len(names) for role, names in group_parameters(dense).items()} == dict.fromkeys(
        ("text", "image", "audio"), linears
    )
