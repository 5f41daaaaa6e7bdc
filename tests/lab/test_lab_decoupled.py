"""Donors with decoupled parameters: what trains, what is routed, and that all else is the shared donor's training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from mcompose.lab import DataSettings, FitSettings, NumbersSettings
from mcompose.lab.batches import WordTable
from mcompose.lab.decoupled import add_group, remove_group
from mcompose.lab.fit import text_config
from mcompose.lab.media import load_digits
from mcompose.lab.numbers.donors import _answer, _encoded, adopt_language_model, make_pool, train_donor
from mcompose.lab.questions import ask
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.lab.towers import build_donor
from mcompose.modalities import MODALITIES
from mcompose.modeling.groups.linear import routed_linears

TINY = NumbersSettings(
    width=16, layers=2, pool=20, projector=FitSettings(2, 1e-3, 4), full=FitSettings(2, 1e-3, 4),
    data=DataSettings(10, 10, 6, 6),
)  # fmt: skip


Q = "layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def digits():
    return load_digits(generator=generator_for(0, "digits"))


def fresh(modality):
    donor = build_donor(modality, text_config(TINY))
    adopt_language_model(donor, LlamaForCausalLM(text_config(TINY)))
    return donor


def asked(donor, digits):
    generator = generator_for(0, "asked")
    pool = make_pool(donor, count=10, digits=digits, split="test", generator=generator)
    questions = [ask("name", 1, generator=generator) for _ in range(3)]
    table = WordTable(donor.processor.tokenizer.get_vocab())
    with torch.no_grad():
        return _answer(donor, questions, _encoded(donor, pool)[:3], table=table)[1]


@pytest.mark.parametrize("modality", MODALITIES)
def test_lab_group_is_what_media_tokens_use_and_nothing_else_does(modality, digits) -> None:
    with deterministic_torch(0, modality):
        donor = fresh(modality)
        donor.model.eval()
        before = asked(donor, digits)
        add_group(donor)
        assert torch.equal(asked(donor, digits), before)
        linears = dict(routed_linears(donor.model.model.language_model))
        assert len(linears) == 7 * TINY.layers
        with torch.no_grad():
            for linear in linears.values():
                linear.groups[modality].weight.mul_(2.0)
        moved = asked(donor, digits)
        assert not torch.allclose(moved, before, atol=1e-4)
        text = torch.tensor([[1, 5, 9]])
        shared = donor.model.model.language_model(input_ids=text).last_hidden_state
        group = remove_group(donor)
        assert torch.equal(group["layers.0.self_attn.q_proj.weight"], 2 * linears["layers.0.self_attn.q_proj"].weight)
        assert torch.equal(asked(donor, digits), before)
        assert torch.equal(donor.model.model.language_model(input_ids=text).last_hidden_state, shared)
    assert not [name for name in donor.model.state_dict() if ".groups." in name]


def test_lab_decoupled_training_is_the_shared_one_but_for_stage_two(digits) -> None:
    def trained(settings, *, decouple):
        with deterministic_torch(0, "image"):
            donor = fresh("image")
            train_donor(donor, settings, seed=0, digits=digits, decouple=decouple)
        return donor

    stage_one = replace(TINY, full=FitSettings(0, 1e-3, 4))
    shared, apart = trained(stage_one, decouple=False), trained(stage_one, decouple=True)
    group = remove_group(apart)
    own = shared.model.state_dict()
    assert all(torch.equal(values, own[name]) for name, values in apart.model.state_dict().items())
    start = {name: own[f"model.language_model.{name}"] for name in group}
    assert all(torch.equal(group[name], start[name]) for name in group)

    whole = trained(TINY, decouple=True)
    moved = remove_group(whole)
    text = {name: whole.model.state_dict()[f"model.language_model.{name}"] for name in moved}
    assert all(not torch.equal(moved[name], start[name]) for name in moved)
    assert all(not torch.equal(text[name], start[name]) for name in moved)
    assert all(not torch.equal(text[name], moved[name]) for name in moved)
    kept = {name for name, values in whole.model.state_dict().items() if torch.equal(values, own[name])}
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"} <= kept


def test_lab_kept_projector_is_that_of_stage_one(digits) -> None:
    def trained(settings):
        with deterministic_torch(0, "audio"):
            donor = fresh("audio")
            train_donor(donor, settings, seed=0, digits=digits)
        return donor.model.state_dict()

    kept, one, both = (
        trained(settings)
        for settings in (
            replace(TINY, keep_projector=True),
            replace(TINY, full=FitSettings(0, 1e-3, 4)),
            TINY,
        )
    )
    projector = [name for name in one if "multi_modal_projector" in name]
    assert all(torch.equal(kept[name], one[name]) for name in projector)
    assert not any(torch.equal(both[name], one[name]) for name in projector)
    assert not torch.equal(kept[f"model.language_model.{Q}"], one[f"model.language_model.{Q}"])


def test_lab_choice_of_projector_leaves_older_families_their_names() -> None:
    assert NumbersSettings().digest(0) == "d676e86f72f4cac5"
    assert NumbersSettings(keep_projector=True).digest(0) != NumbersSettings().digest(0)
