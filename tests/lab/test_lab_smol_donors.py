"""The smol family's donors: trained on just what an evaluation asks, in two stages, and decoupled beside them."""

from __future__ import annotations

from dataclasses import replace

import lab_smol_stand_ins as stand_ins
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from mcompose.errors import OutputError
from mcompose.lab import FitSettings, make_smol
from mcompose.lab.decoupled import add_group, remove_group
from mcompose.lab.fit import tuned_weights
from mcompose.lab.numbers.donors import adopt_language_model
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.lab.smol import media as smol_media
from mcompose.lab.smol.donors import EncodedItems, _answer, encode_items, scale_projector, train_reader
from mcompose.lab.smol.make import train_smol_decoupled
from mcompose.lab.smol.media import items_of
from mcompose.lab.smol.questions import KINDS, MODALITIES, ask
from mcompose.lab.smol.text import batch_of, tune_base
from mcompose.lab.smol.towers import build_smol_donor
from mcompose.modalities import PLACEHOLDERS

ARGUMENTS = {"image": "images", "audio": "audio", "points": "points"}


@pytest.fixture(autouse=True)
def _no_synthesiser(monkeypatch):
    monkeypatch.setattr(smol_media, "speak", stand_ins.hummed)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return stand_ins.small_parts(tmp_path_factory.mktemp("parts") / "base")


def fresh(parts, modality):
    language = LlamaForCausalLM.from_pretrained(parts.base)
    tokenizer = AutoTokenizer.from_pretrained(parts.base)
    donor = build_smol_donor(modality, language.config.to_dict(), tokenizer, shapes=stand_ins.SHAPES)
    adopt_language_model(donor, language)
    donor.model.eval()
    return donor


@pytest.mark.parametrize("modality", MODALITIES)
def test_smol_training_asks_what_the_native_class_is_asked(parts, modality, tmp_path) -> None:
    with deterministic_torch(0, modality):
        donor = fresh(parts, modality)
    items = items_of(modality, parts.things[:3], stand_ins.TINY, seed=0, split="test", library=tmp_path)
    question = ask("choice", (modality,), generator=generator_for(0, "q"))
    seen = encode_items(donor, items)
    assert seen.features.shape[1] == donor.tokens
    with torch.no_grad():
        ids, logits = _answer(donor, [question], seen.features[:1])
        text = f"{modality}: {PLACEHOLDERS[modality]} {question.text}"
        value = items.values[0] if modality != "audio" else items.values[0].astype("float32") / 32768
        inputs = donor.processor(text=[text], return_tensors="pt", **{ARGUMENTS[modality]: [value]})
        allowed = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
        native = donor.model(**allowed).logits[:, -1]
    assert torch.equal(inputs["input_ids"], ids[:, :-2])
    torch.testing.assert_close(logits[:, 0], native, atol=1e-5, rtol=1e-5)


def test_smol_answers_stand_in_one_column_and_are_one_token(parts) -> None:
    tokenizer = AutoTokenizer.from_pretrained(parts.base)
    batch = batch_of(["image: chair Answer:", "Answer:"], ["yes", "lamp"], tokenizer=tokenizer)
    words = tokenizer.get_vocab()
    assert batch.input_ids[:, -2].tolist() == [words["yes"], words["lamp"]]
    assert batch.input_ids[:, -1].tolist() == [tokenizer.eos_token_id] * 2
    assert batch.attention_mask.sum(1).tolist() == [7, 4]
    assert (batch.labels[:, :-2] == -100).all()
    with pytest.raises(ValueError, match="not one token"):
        batch_of(["Answer:"], ["yes no"], tokenizer=tokenizer)


def test_smol_base_is_tuned_in_its_linears_alone(parts) -> None:
    model = LlamaForCausalLM.from_pretrained(parts.base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tune_base(model, AutoTokenizer.from_pretrained(parts.base), stand_ins.TINY.base, seed=0)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(moved) == 7 * stand_ins.LAYERS == len(tuned_weights(model.model))
    assert all("_proj.weight" in name for name in moved)


@pytest.fixture(scope="module")
def families(parts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smol_media, "speak", stand_ins.hummed)
        root = tmp_path_factory.mktemp("smol")
        return [
            make_smol(root / name, seed=seed, settings=stand_ins.TINY, parts=parts)
            for name, seed in (("a", 0), ("again", 0), ("b", 1))
        ]


def weights(family, name):
    return load_file(family.donors[name] / "model.safetensors")


def test_smol_family_follows_from_its_seed(families) -> None:
    one, again, other = families
    for name in MODALITIES:
        first, second, third = (weights(family, name) for family in families)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not all(torch.equal(first[key], third[key]) for key in first)
    assert {p.name: p.read_bytes() for p in (one.folder / "data").glob("*.jsonl")} == {
        p.name: p.read_bytes() for p in (again.folder / "data").glob("*.jsonl")
    }
    assert one.recipe.read_text() == again.recipe.read_text()
    assert (one.base / "model.safetensors").read_bytes() == (other.base / "model.safetensors").read_bytes()
    assert one.figures["digest"] != other.figures["digest"]
    assert not one.folder.with_name("a.partial").exists()


def test_smol_donors_change_linears_and_keep_the_projector_of_stage_one(families, parts) -> None:
    base = LlamaForCausalLM.from_pretrained(parts.base).model.state_dict()
    for name in MODALITIES:
        donor = type(fresh(parts, name).model).from_pretrained(families[0].donors[name])
        for key, values in donor.model.language_model.state_dict().items():
            changed = not torch.equal(values[: len(base[key])], base[key])
            assert changed == ("_proj.weight" in key), key
        stage_one = load_file(families[0].folder / "stage-1" / f"{name}.safetensors")
        after = donor.model.multi_modal_projector.state_dict()
        assert stage_one.keys() == after.keys()
        assert all(torch.equal(after[key], stage_one[key]) for key in after)


def test_smol_family_is_opened_again_and_not_overwritten(families, parts, tmp_path) -> None:
    one = families[0]
    assert make_smol(one.folder, settings=stand_ins.TINY, parts=parts).figures == one.figures
    with pytest.raises(OutputError, match="another kind, seed or settings"):
        make_smol(one.folder, settings=replace(stand_ins.TINY, copies=3), parts=parts)
    (tmp_path / "note").write_text("mine")
    with pytest.raises(OutputError, match="not a lab family"):
        make_smol(tmp_path, settings=stand_ins.TINY, parts=parts)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_smol_decoupled_donor_starts_from_the_shared_stage_one(families, parts) -> None:
    family = families[0]
    unmoved = replace(stand_ins.TINY, full=replace(stand_ins.TINY.full, steps=0))
    donor, figures = train_smol_decoupled(family, unmoved, "points", parts=parts)
    assert figures["seconds"] >= 0
    start = load_file(family.folder / "stage-1" / "points.safetensors")
    assert all(torch.equal(values, start[name]) for name, values in projector(donor).items())
    base = LlamaForCausalLM.from_pretrained(parts.base).model.state_dict()
    assert all(torch.equal(values, base[name]) for name, values in remove_group(donor).items())
    tower = {key: v for key, v in weights(family, "points").items() if "points_tower" in key}
    own = donor.model.state_dict()
    assert tower
    assert all(torch.equal(own[key], values) for key, values in tower.items())

    trained, _ = train_smol_decoupled(family, stand_ins.TINY, "points", parts=parts)
    group = remove_group(trained)
    assert all(not torch.equal(values, base[name]) for name, values in group.items())
    language = trained.model.model.language_model.state_dict()
    assert all(not torch.equal(language[name], base[name]) for name in group)
    assert all(torch.equal(values, start[name]) for name, values in projector(trained).items())
    both, _ = train_smol_decoupled(family, replace(stand_ins.TINY, train_projector=True), "points", parts=parts)
    assert not any(torch.equal(values, start[name]) for name, values in projector(both).items())


def projector(donor):
    return donor.model.model.multi_modal_projector.state_dict()


def test_smol_group_serves_media_tokens_alone(parts, tmp_path) -> None:
    with deterministic_torch(0, "group"):
        donor = fresh(parts, "image")
    items = items_of("image", parts.things[:1], stand_ins.TINY, seed=0, split="test", library=tmp_path)
    question = ask("name", ("image",), generator=generator_for(0, "q"))
    features = encode_items(donor, items).features
    with torch.no_grad():
        before = _answer(donor, [question], features)[1]
        add_group(donor)
        assert torch.equal(_answer(donor, [question], features)[1], before)


def test_smol_projector_begins_at_the_scale_of_features_and_embeddings(parts) -> None:
    with deterministic_torch(0, "scale_projector"):
        donor = fresh(parts, "image")
        scales = torch.logspace(-2, 3, 16)
        features = torch.randn(80, 3, 16) * scales + 5 * scales
        inside = []
        fresh_projector = donor.model.model.multi_modal_projector
        fresh_projector.linear_1.register_forward_hook(lambda _, __, out: inside.append(out.detach()))
        scale_projector(fresh_projector, features, like=torch.full((4, 2), 0.3) * torch.tensor([1.0, -1.0]))
        inside.clear()
        out = fresh_projector(features[:64])
    wanted = (torch.full((4, 2), 0.3) * torch.tensor([1.0, -1.0])).std()
    torch.testing.assert_close(out.std(), wanted, rtol=1e-4, atol=1e-5)
    assert inside[0].mean().abs() < 0.3
    assert inside[0].std() == pytest.approx(1.0, abs=0.3)


def test_smol_reader_brings_tokens_near_the_words_of_their_kinds_and_moves_nothing_else(parts, tmp_path) -> None:
    with deterministic_torch(0, "reader"):
        donor = fresh(parts, "image")
        before = {name: value.clone() for name, value in donor.model.state_dict().items()}
        items = items_of("image", parts.things, stand_ins.TINY, seed=0, split="test", library=tmp_path)
        generator = torch.Generator().manual_seed(0)
        told = torch.randn(12, 1, 16, generator=generator)[torch.from_numpy(items.kinds)]
        seen = EncodedItems(torch.cat([told, told], dim=1), items.places())
        train_reader(donor, seen, FitSettings(150, 1e-2, 24), seed=0)
    words = donor.processor.tokenizer.convert_tokens_to_ids(list(KINDS))
    embeddings = donor.model.get_input_embeddings().weight[torch.tensor(words)]
    directions = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=-1)
    with torch.no_grad():
        nearest = (donor.model.model.multi_modal_projector(seen.features) @ directions.T).argmax(-1)
    right = (nearest == torch.from_numpy(items.kinds)[:, None]).float().mean()
    assert right > 0.9
    moved = {name for name, value in donor.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
