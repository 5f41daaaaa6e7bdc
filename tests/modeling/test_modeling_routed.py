"""Routed linears equal the masked sum over groups, in values and gradients."""

import pytest
import torch
from routed_models import GROUPS, batch, gradients, plain, reference, routed

from mcompose.modeling import add_groups, fold_text, group_parameters, group_specs
from mcompose.modeling.groups.linear import routed_linears


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@torch.no_grad()
def test_outputs_are_the_masked_sum_over_groups(groups, prefixes):
    model, inputs = routed(groups, prefixes=prefixes)
    close(model(**inputs).logits, reference(model, inputs["input_ids"])(**inputs).logits)


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_gradients_are_those_of_the_masked_sum(groups, prefixes):
    model, inputs = routed(groups, prefixes=prefixes)
    ours = gradients(model, inputs)
    theirs = gradients(reference(model, inputs["input_ids"]), inputs)
    assert any(".groups.image." in name for name in ours)
    for name, grad in theirs.items():
        close(ours.get(name, torch.zeros_like(grad)), grad)
    assert ours.keys() <= theirs.keys()


@torch.no_grad()
def test_right_padding_is_text():
    model, inputs = routed("mixed-text")
    image, sound = inputs["sees__pixel_values"][:1], inputs["hears__input_features"][:1]
    inputs = batch(model, image, sound, side="right")
    close(model(**inputs).logits, reference(model, inputs["input_ids"])(**inputs).logits)


@pytest.mark.parametrize("groups", ["dense", "shared", "separate", "mixed"])
@torch.no_grad()
def test_text_only_is_the_unrouted_model_to_the_bit(groups):
    ids = torch.tensor([[1, 5, 6, 7], [0, 1, 9, 10]])
    mask = (ids != 0).long()
    model, _ = routed(groups, dtype=torch.float32)
    other, *_ = plain(dtype=torch.float32)
    state = model.state_dict()
    other.load_state_dict({name: state[name] for name in other.state_dict()})
    assert torch.equal(
        model(input_ids=ids, attention_mask=mask).logits, other(input_ids=ids, attention_mask=mask).logits
    )
    tokens = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    wanted = other.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens, wanted)


@pytest.mark.parametrize("kind", ["dense", "low_rank"])
@torch.no_grad()
def test_new_groups_leave_the_answer_as_it_was(kind):
    model, image, sound = plain()
    inputs = batch(model, image, sound)
    wanted = model(**inputs).logits
    state = torch.get_rng_state()
    add_groups(model, ["image", "audio"], kind=kind, rank=4 if kind == "low_rank" else None, scale=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    close(model(**inputs).logits, wanted)
    assert model.config.routed_groups["image"]["kind"] == kind
    if kind == "low_rank":
        first = next(linear for _, linear in routed_linears(model))
        assert first.groups["image"].lora_A.weight.abs().max() <= first.in_features**-0.5
        assert not torch.equal(first.groups["image"].lora_A.weight, first.groups["audio"].lora_A.weight)


@torch.no_grad()
def test_folding_the_text_group_changes_nothing():
    model, inputs = routed("shared-text")
    wanted = model(**inputs).logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold_text(model)
    close(model(**inputs).logits, wanted)
    assert (model.config.routed_base, set(model.config.routed_groups)) == ("separate", {"image", "audio"})
    state = model.state_dict()
    key = "model.language_model.layers.0.self_attn.q_proj"
    assert torch.equal(state[f"{key}.base.weight"], before[f"{key}.weight"])
    a, b = (before[f"{key}.groups.text.lora_{x}.weight"] for x in "AB")
    close(state[f"{key}.weight"], before[f"{key}.weight"] + 2.0 * b @ a)
    assert torch.equal(state[f"{key}.groups.image.lora_B.weight"], before[f"{key}.groups.image.lora_B.weight"])
    assert not any(".groups.text." in name for name in state)


@torch.no_grad()
def test_a_text_group_that_is_a_sum_is_told_by_name_and_folds_into_one_tensor():
    model, inputs = routed("stacked")
    wanted, state = model(**inputs).logits, model.state_dict()
    key = "model.language_model.layers.1.mlp.down_proj"
    stems = [key, f"{key}.stack.0", f"{key}.stack.1"]
    pairs = [[state[f"{stem}.groups.text.lora_{x}.weight"].clone() for x in "BA"] for stem in stems]
    assert [a.shape[0] for _, a in pairs] == [4, 2, 1]
    roles = group_parameters(model)
    assert f"{stems[2]}.groups.text.lora_A.weight" in roles["text"]
    assert f"{key}.weight" in roles["base"]
    origin = state[f"{key}.weight"].clone()
    fold_text(model)
    close(model(**inputs).logits, wanted)
    whole = origin + sum(scale * b @ a for scale, (b, a) in zip((2.0, 0.5, 1.0), pairs, strict=True))
    close(model.state_dict()[f"{key}.weight"], whole)
    assert not any(".stack." in name for name in model.state_dict())


@pytest.mark.parametrize("fields", [{"rank": [2, 3], "scale": 1.0}, {"rank": [], "scale": []}, {"rank": [2, 0]}])
def test_a_sum_needs_a_scale_for_each_rank(fields):
    with pytest.raises(ValueError, match="'text'"):
        group_specs({"text": {"kind": "low_rank", **fields}})
