"""Domain experts from recipe to files: every kind of encoder, copied bit for bit and read as its own class reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from PIL import Image
from safetensors.torch import load_file
from tiny_experts import EXPERTS, VISION, native_encoder, write_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor, Dinov2Config

from mcompose.anatomy import read_anatomy
from mcompose.checkpoint import open_checkpoint
from mcompose.compose.experts.encoder import find_encoder
from mcompose.errors import CompositionError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.pipeline.write import MergeOptions, merge

PADDED = ("pix2struct", "kosmos", "siglip2")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8))
FUSED = ("clap", "clap-fused")
SOUND = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for name in EXPERTS:
        write_expert(name, folder / name)
    return folder


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_natives(tmp_path_factory.mktemp("general"))


def recipe(folder: Path, general: Path, checkpoints: Path, names, *, router=None, settings=None, **changes) -> Path:
    experts = {
        name: {"encoder": f"local:{checkpoints / name}", "modality": EXPERTS[name].modality} | (settings or {})
        for name in names
    }
    return write_recipe(
        folder / "recipe.yaml",
        base=f"local:{general / 'base'}",
        sources=[{"name": name, "model": f"local:{general / name}"} for name in ("sees", "hears")],
        merge={"method": "linear", "seed": 3},
        compose={"experts": experts} | ({"router": router} if router else {}),
        **changes,
    )


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, general: Path, checkpoints: Path) -> Path:
    """A composition with all experts."""
    folder = tmp_path_factory.mktemp("made")
    return merge(
        recipe(folder, general, checkpoints, EXPERTS), output=folder / "out", options=MergeOptions(threads=2)
    ).result.folder


@pytest.fixture(scope="session")
def apart(tmp_path_factory: pytest.TempPathFactory, general: Path, checkpoints: Path) -> Path:
    """The same composition with all encoders kept by reference."""
    folder = tmp_path_factory.mktemp("apart")
    kept = recipe(folder, general, checkpoints, EXPERTS, settings={"store": "reference"})
    return merge(kept, output=folder / "out").result.folder


@pytest.fixture(scope="session")
def fetched(apart: Path):
    return AutoModelForMultimodalLM.from_pretrained(apart, trust_remote_code=False).eval()


@pytest.fixture(scope="session")
def state(made: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(made.glob("*.safetensors")) for key, value in load_file(path).items()}


@pytest.fixture(scope="session")
def model(made: Path):
    return AutoModelForMultimodalLM.from_pretrained(made, trust_remote_code=False).eval()


@pytest.fixture(scope="session")
def processor(made: Path):
    return AutoProcessor.from_pretrained(made, trust_remote_code=False)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_encoder_is_copied_bit_for_bit_and_alone(name, made, state, checkpoints):
    head = f"model.experts.{name}.encoder."
    copied = {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    native = native_encoder(name, checkpoints / name).state_dict()
    expected = {key: value for key, value in native.items() if not key.startswith("pooler.")}
    assert sorted(copied) == sorted(expected)
    for key, value in expected.items():
        assert copied[key].dtype == value.dtype
        assert torch.equal(copied[key], value), key
    entry = json.loads((made / "config.json").read_text())["experts"][name]
    assert entry["class_name"] == type(native_encoder(name, checkpoints / name)).__name__
    assert entry["skip"] == EXPERTS[name].leading


def batch_for(processor, name: str):
    """One item with a question about it, and what the expert's encoder reads of it."""
    kind = EXPERTS[name]
    item = {"images": [PICTURE]} if kind.modality == "image" else {"audio": [SOUND]}
    text = "USER : <image> what" if kind.modality == "image" else "USER : <audio> what"
    rate = {"sampling_rate": 8000} if kind.modality == "audio" else {}
    batch = processor(text=text, experts={kind.modality: name}, **item, **rate)
    return batch, {key.split("__")[1]: value for key, value in batch.items() if key.startswith(f"{name}__")}


@pytest.mark.parametrize("name", EXPERTS)
def test_the_network_reads_an_item_as_the_native_encoder_does(name, model, processor, checkpoints):
    kind = EXPERTS[name]
    batch, own = batch_for(processor, name)
    with torch.no_grad():
        hidden = native_encoder(name, checkpoints / name)(**own).last_hidden_state
        features = model.model.experts[name](own)
    if hidden.dim() == 4:
        is_first = hidden.shape[1] == model.model.experts[name].width
        hidden = hidden.flatten(2).transpose(1, 2) if is_first else hidden.flatten(1, 2)
    expected = model.model.experts[name].projector(hidden[:, kind.leading :])
    assert features.counts == [kind.vectors]
    assert torch.equal(features.x_ND, expected[0])
    ids = model.config.expert_token_ids[name]
    assert int((batch["input_ids"] == ids).sum()) == kind.vectors
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


@pytest.mark.parametrize("name", EXPERTS)
@torch.no_grad()
def test_by_reference_the_features_are_those_of_a_stored_encoder(name, apart, model, fetched, processor):
    held = [path for path in apart.glob("*.safetensors") for key in load_file(path) if f".{name}.encoder." in key]
    assert not held
    one, two = (each.model.experts[name] for each in (model, fetched))
    assert list(one.state_dict()) == list(two.state_dict())
    for key, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[key], value), key
    _, own = batch_for(processor, name)
    assert torch.equal(two(own).x_ND, one(own).x_ND)


def test_a_reference_tells_the_names_that_are_no_prefix(apart):
    references = {
        name: e["reference"] for name, e in json.loads((apart / "config.json").read_text())["experts"].items()
    }
    spelt = {name: len(reference["keys"]) for name, reference in references.items() if "keys" in reference}
    assert spelt == {"dinov2": 16, "dinov2-registers": 16, "vit": 32, "vit-pooled": 32, "ast": 32}
    own, file = "layers.0.attention.q_proj.weight", "vit.encoder.layer.0.attention.attention.query.weight"
    assert references["vit"]["keys"][own] == file
    assert references["vit"]["prefix"] == "vit."
    assert references["vit-pooled"]["prefix"] == ""
    assert references["whisper"]["prefix"] == "model.encoder."


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_a_sound_gives_the_same_each_time_and_alone(name, model, processor, checkpoints):
    sounds = [np.random.default_rng(k).normal(0, 0.1, n).astype(np.float32) for k, n in enumerate((4000, 2000, 8000))]

    def own(items):
        text = " ".join(["<audio>"] * len(items))
        batch = processor(text=text, audio=items, experts={"audio": [name] * len(items)}, sampling_rate=8000)
        return {key.split("__")[1]: value for key, value in batch.items() if key.startswith(f"{name}__")}

    expert = model.model.experts[name]
    first = own(sounds)
    assert first["input_features"].shape[:2] == (3, 4 if name == "clap-fused" else 1)
    assert not first["is_longer"].any()
    for _ in range(3):
        again = own(sounds)
        assert all(torch.equal(again[key], first[key]) for key in first)
    features = expert(first).x_ND
    unfused = {"input_features": first["input_features"], "is_longer": torch.zeros(3, 1, dtype=torch.bool)}
    hidden = native_encoder(name, checkpoints / name)(**unfused).last_hidden_state
    assert torch.equal(features, expert.projector(hidden.flatten(2).transpose(1, 2)).flatten(0, 1))
    for place, sound in enumerate(sounds):  # the last is exactly as long as it can be
        alone = own([sound])
        assert all(torch.equal(alone[key], first[key][place : place + 1]) for key in first)
        torch.testing.assert_close(expert(alone).x_ND, features[64 * place : 64 * place + 64], rtol=1e-4, atol=1e-5)


def test_an_encoder_whose_tensors_are_split_on_loading_is_refused(tmp_path, monkeypatch):
    swiglu = EXPERTS["dinov2"]._replace(config=lambda: Dinov2Config(**VISION, mlp_ratio=2, use_swiglu_ffn=True))
    monkeypatch.setitem(EXPERTS, "swiglu", swiglu)
    checkpoint = open_checkpoint(write_expert("swiglu", tmp_path / "swiglu"))
    with pytest.raises(CompositionError, match=r"lack 'encoder.layer.0.mlp.gate_proj.weight'") as caught:
        find_encoder(checkpoint, modality="image", who="expert 'swiglu'")
    assert "merges or splits" in caught.value.hint


def test_the_same_bytes_with_one_thread_and_with_two(made, general, checkpoints, tmp_path):
    again = merge(
        recipe(tmp_path, general, checkpoints, EXPERTS), output=tmp_path / "out", options=MergeOptions(threads=1)
    ).result.folder
    names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (made / name).read_bytes() == (again / name).read_bytes(), name


def test_the_projector_and_the_router_begin_by_the_seed(made, state):
    first = state["model.experts.clip.projector.layers.0.weight"]
    assert (first.dtype, tuple(first.shape)) == (torch.float32, (32, 32))
    assert 0 < first.abs().max() <= 32**-0.5
    assert torch.equal(state["model.experts.clip.projector.norm.weight"], torch.ones(32))
    assert torch.equal(state["model.experts.clip.projector.layers.0.bias"], torch.zeros(32))
    assert not torch.equal(first, state["model.experts.siglip.projector.layers.0.weight"])
    config = json.loads((made / "config.json").read_text())
    images = [name for name, kind in EXPERTS.items() if kind.modality == "image"]
    assert config["routers"]["image"]["classes"] == ["none", *images]
    assert config["routers"]["audio"]["classes"] == ["none", "whisper", "ast", "clap", "clap-fused"]
    assert config["routers"]["image"]["feature"] == "class"
    assert config["routers"]["audio"]["feature"] == "mean"
    assert tuple(state["model.routers.image.weight"].shape) == (len(images) + 1, 32)


def test_separators_begin_as_the_mean_of_the_base_s_tokens(state, general):
    table = load_file(general / "base" / "model.safetensors")["model.embed_tokens.weight"]
    for row in state["model.domain_tokens"]:
        assert torch.equal(row, table.double().mean(0).float())


def test_the_ledger_says_what_was_copied_made_and_left_out(made):
    ledger = Ledger.read(made)
    rows = {row.name: row for row in ledger.tensors}
    copied = rows["model.experts.whisper.encoder.conv1.weight"]
    assert (copied.action, copied.part, copied.sources) == ("copied", "expert:whisper", ("whisper",))
    drawn = rows["model.experts.whisper.projector.layers.0.weight"]
    assert (drawn.action, drawn.part, drawn.note) == ("created", "projector:whisper", "new: drawn by the seed")
    assert rows["model.routers.image.weight"].part == "router:image"
    assert rows["model.domain_tokens"].part == "separators"
    left = [row for row in ledger.tensors if row.action == "dropped" and row.sources == ("whisper",)]
    assert all(row.name.startswith("model.decoder.") for row in left)
    assert {row.note for row in left} == {"not part of the encoder"}
    pooled = [row for row in ledger.tensors if row.action == "dropped" and row.sources == ("vit-pooled",)]
    assert {row.name.split(".")[0] for row in pooled} == {"pooler"}
    assert [source.name for source in ledger.sources][-len(EXPERTS) :] == list(EXPERTS)


def test_verify_and_inspect_know_the_new_parts(made):
    assert verify(made).problems == ()
    checkpoint = open_checkpoint(made)
    slots = read_anatomy(checkpoint.config, checkpoint.shapes).slots
    assert set(slots) == set(checkpoint.tensors)
    by_part = {slot.part for slot in slots.values()}
    assert {"expert", "projector", "router", "separators", "encoder", "language"} <= by_part
    assert all(slot.part == "expert" for key, slot in slots.items() if ".experts." in key and ".encoder." in key)
