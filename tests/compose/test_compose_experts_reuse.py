"""Experts that exist already: composed sources keep theirs, trained projectors and routers come back, references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from damc_sources import write_natives
from safetensors.torch import load_file, save_file
from tiny_experts import native_encoder, write_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.errors import CompositionError, RequestError
from mcompose.ledger import Ledger
from mcompose.pipeline.write import merge


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("reuse"))
    for name in ("clip", "vit", "whisper", "pix2struct", "kosmos"):
        write_expert(name, folder / "experts" / name)
    return folder


def composed(folder: Path, place: Path, experts: dict, *, sources=("sees",), **compose) -> Path:
    folder.mkdir(exist_ok=True)
    listed = [
        {"name": f"s{k}", "model": f"local:{one}"}
        if isinstance(one, Path)
        else {"name": one, "model": f"local:{place / one}"}
        for k, one in enumerate(sources)
    ]
    entries = {name: {"encoder": f"local:{place / 'experts' / name}"} | more for name, more in experts.items()}
    recipe = write_recipe(
        folder / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=listed,
        merge={"method": "linear"},
        compose={"experts": entries, **compose},
        output={"format": "composed"},
    )
    return merge(recipe, output=folder / "out").result.folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="session")
def first(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composition with two experts, whose new tensors were trained since (their values are other ones)."""
    folder = composed(tmp_path_factory.mktemp("first"), place, {"vit": {"domain": "photo"}, "clip": {}})
    tensors = state(folder)
    for key in tensors:
        if ".projector." in key or "routers" in key or key.endswith("domain_tokens"):
            tensors[key] = tensors[key] + 0.125
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_composed_source_keeps_its_experts(first, place, tmp_path):
    again = composed(tmp_path, place, {}, sources=(first, "hears"))
    old, new = state(first), state(again)
    kept = [key for key in old if key.startswith(("model.experts.", "model.routers.", "model.domain_tokens"))]
    assert len(kept) > 80
    for key in kept:
        assert torch.equal(new[key], old[key]), key
    assert config(again)["experts"] == config(first)["experts"]
    assert config(again)["routers"] == config(first)["routers"]
    assert config(again)["routers"]["image"]["classes"] == ["none", "vit", "clip"]
    AutoProcessor.from_pretrained(again, trust_remote_code=False)
    AutoModelForMultimodalLM.from_pretrained(again, trust_remote_code=False)


def test_a_further_expert_gets_a_row_of_its_own_and_the_others_keep_theirs(first, place, tmp_path):
    again = composed(tmp_path, place, {"kosmos": {"padding": "drop"}}, sources=(first, "hears"))
    old, new = state(first)["model.routers.image.weight"], state(again)["model.routers.image.weight"]
    assert config(again)["routers"]["image"]["classes"] == ["none", "vit", "clip", "kosmos"]
    assert torch.equal(new[:3], old)
    assert 0 < new[3].abs().max() <= 32**-0.5
    row = {row.name: row for row in Ledger.read(again).tensors}["model.routers.image.weight"]
    assert (row.action, row.sources, row.note) == ("copied", ("s0",), "kept rows: none, vit, clip")


def test_experts_of_a_modality_that_is_not_brought_are_left_out(first, place, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[
            {"name": "composed", "model": f"local:{first}", "modalities": []},
            {"name": "sees", "model": f"local:{place / 'sees'}"},
        ],
        merge={"method": "linear"},
        output={"format": "composed"},
    )
    folder = merge(recipe, output=tmp_path / "out").result.folder
    assert "experts" not in config(folder)
    assert not [key for key in state(folder) if "expert" in key]
    left = {row.name: row.note for row in Ledger.read(folder).tensors if row.action == "dropped"}
    assert left["model.experts.vit.encoder.embeddings.cls_token"] == "its modality is not brought"
    assert left["model.routers.image.weight"] == "no expert here needs it"


def test_a_trained_projector_and_router_come_from_their_checkpoint(first, place, tmp_path):
    experts = {"vit": {"projector": f"local:{first}"}, "clip": {}}
    again = composed(tmp_path, place, experts, router=f"local:{first}")
    old, new = state(first), state(again)
    mine = [key for key in old if key.startswith("model.experts.vit.projector.")]
    assert len(mine) == 6
    assert all(torch.equal(new[key], old[key]) for key in mine)
    assert torch.equal(new["model.routers.image.weight"], old["model.routers.image.weight"])
    drawn = "model.experts.clip.projector.layers.0.weight"
    assert not torch.equal(new[drawn], old[drawn])


def test_by_reference_the_network_is_the_same_and_the_files_are_smaller(place, tmp_path):
    inside = composed(tmp_path / "inside", place, {"whisper": {"modality": "audio"}}, sources=("hears",))
    kept = {"modality": "audio", "store": "reference"}
    apart = composed(tmp_path / "apart", place, {"whisper": kept}, sources=("hears",))
    held = [key for key in state(apart) if key.startswith("model.experts.whisper.")]
    assert held
    assert all(".projector." in key for key in held)
    reference = config(apart)["experts"]["whisper"]["reference"]
    assert reference["prefix"] == "model.encoder."
    assert "keys" not in reference
    assert list(reference["sha256"]) == ["model.safetensors"]
    models = [AutoModelForMultimodalLM.from_pretrained(f, trust_remote_code=False) for f in (inside, apart)]
    one, two = (model.model.experts["whisper"].state_dict() for model in models)
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    native = native_encoder("whisper", place / "experts" / "whisper").state_dict()
    assert all(torch.equal(two[f"encoder.{key}"], value) for key, value in native.items())


def test_the_router_can_be_left_out(place, tmp_path):
    folder = composed(tmp_path, place, {"vit": {}}, router="none")
    assert config(folder).get("routers", {}) == {}
    assert not [key for key in state(folder) if "routers" in key]


MISTAKES = {
    "wrong modality": (
        {"whisper": {"modality": "image"}},
        {},
        "an encoder for audio, and none for image",
        "modality: audio",
    ),
    "nothing beside it": ({"whisper": {"modality": "audio"}}, {}, "no source brings audio", "Add a source"),
    "language model": ({"vit": {"encoder": "base"}}, {}, "no encoder that takes image", "vision or audio"),
    "too many dropped": ({"vit": {"class_token": 9}}, {}, "nothing is left when 9 are dropped", ""),
    "no such layer": (
        {"vit": {"layer": 7}},
        {},
        "'vit': its encoder has 3 hidden states",
        "'compose.experts.vit.layer'",
    ),
    "no such patch layer": ({"pix2struct": {"layer": 99}}, {}, "layers 0 to 2 (or -3 to -1); layer 99 is none", "last"),
    "no padding": ({"vit": {"padding": "drop"}}, {}, "tells no padding", "Leave 'padding' out"),
    "torch's word": ({"values": {"encoder": "experts/vit"}}, {}, "torch uses the word itself", "another name"),
    "no class token": ({"vit": {}}, {"router": {"feature": "class"}}, "no class token", "feature: mean"),
    "router elsewhere": ({"vit": {}}, {"router": "local:base"}, "has no router for image", "composed checkpoint"),
    "projector elsewhere": ({"vit": {"projector": "local:base"}}, {}, "no projector of an expert called 'vit'", ""),
}


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_a_mistake_names_the_expert(case, place, tmp_path):
    experts, compose, message, hint = MISTAKES[case]

    def absolute(value):
        return f"local:{place / value.removeprefix('local:')}" if isinstance(value, str) else value

    experts = {
        name: {key: absolute(value) if key in ("encoder", "projector") else value for key, value in more.items()}
        for name, more in experts.items()
    }
    compose = {key: absolute(value) for key, value in compose.items()}
    sources = ("hears",) if case == "no class token" else ("sees",)
    if case == "no class token":
        experts = {"whisper": {"modality": "audio"}}
    with pytest.raises(CompositionError) as caught:
        composed(tmp_path, place, experts, sources=sources, **compose)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_without_a_processor_the_expert_is_named(place, tmp_path):
    write_expert("clip", tmp_path / "bare", processor=False)
    with pytest.raises(CompositionError, match=r"The processor of expert 'clip' cannot be loaded") as caught:
        composed(tmp_path, place, {"clip": {"encoder": f"local:{tmp_path / 'bare'}"}})
    assert "preprocessor_config.json" in caught.value.hint
    one = {"encoder": f"local:{tmp_path / 'bare'}", "processor": f"local:{place / 'experts' / 'clip'}"}
    folder = composed(tmp_path, place, {"clip": one})
    assert (folder / "processors" / "clip" / "preprocessor_config.json").is_file()


def test_files_that_lack_a_tensor_or_hold_a_strange_one(place, tmp_path):
    folder = write_expert("whisper", tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.strange.weight"] = tensors.pop("model.encoder.conv1.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompositionError) as caught:
        composed(tmp_path, place, {"whisper": {"encoder": f"local:{folder}", "modality": "audio"}}, sources=("hears",))
    assert "lack 'conv1.weight' and hold, beside it, 'model.encoder.strange.weight'" in caught.value.message


def test_a_missing_checkpoint_and_an_output_over_an_encoder(place, tmp_path):
    with pytest.raises(RequestError, match=r"Expert 'vit': .*does not exist"):
        composed(tmp_path, place, {"vit": {"encoder": "local:nowhere"}})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("local:nowhere", f"local:{place / 'experts' / 'vit'}"))
    with pytest.raises(RequestError, match="expert 'vit'"):
        merge(recipe, output=place / "experts" / "vit")


def test_two_sources_with_one_expert_name_clash(first, place, tmp_path):
    other = composed(tmp_path / "b", place, {"vit": {"encoder": f"local:{place / 'experts' / 'clip'}"}})
    with pytest.raises(CompositionError, match="both bring 'image'"):
        composed(tmp_path, place, {}, sources=(first, other))
    with pytest.raises(CompositionError, match="'vit' has the name of an expert that a source brings"):
        composed(tmp_path, place, {"vit": {}}, sources=(first,))
