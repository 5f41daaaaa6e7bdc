"""Training and running modes: loss, checkpointing, bf16, compilation, attention implementations."""

import pytest
import torch
from composed_models import compose, one_source
from tiny_configs import IMAGE
from tiny_models import tiny_inputs, tiny_model
from torch.nn import functional


def test_loss_is_the_shifted_cross_entropy():
    _, composed, _, mine = one_source("llava")
    ids = mine["input_ids"]
    labels = ids.masked_fill(ids == IMAGE, -100)
    out = composed(**mine, labels=labels)
    wanted = functional.cross_entropy(out.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(out.loss, wanted)


def test_labels_on_placeholders_beyond_the_table_are_not_learnt():
    native = tiny_model("llava")
    composed = compose(native, {"only": native}, {"only": ["image"]}, {"image": 999})
    inputs = tiny_inputs("llava", native)
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 999)
    given = {"input_ids": ids, "only__pixel_values": inputs["pixel_values"]}
    raw = composed(**given, labels=ids).loss
    assert torch.equal(raw, composed(**given, labels=ids.masked_fill(ids == 999, -100)).loss)


def test_the_prompt_of_a_prefix_model_sees_both_ways_and_its_answer_does_not():
    native, composed, inputs, mine = one_source("paligemma")
    del mine["token_type_ids"]
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    types = (labels != -100).long()
    wanted = native(**{**inputs, "token_type_ids": types}).logits
    assert torch.equal(composed(**mine, labels=labels).logits, wanted)


def gradients(model, inputs):
    model.zero_grad()
    model(
        **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100), use_cache=False
    ).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl", "gemma3"])
def test_gradient_checkpointing_gives_the_same_gradients(model_type):
    _, composed, _, mine = one_source(model_type)
    composed.train()
    plain = gradients(composed, mine)
    composed.gradient_checkpointing_enable({"use_reentrant": False})
    assert composed.model.language_model.gradient_checkpointing
    checkpointed = gradients(composed, mine)
    assert any(".towers." in name for name in plain)
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_natives():
    native, composed, inputs, mine = one_source("llava")
    theirs, ours = gradients(native, inputs), gradients(composed, mine)
    for name, grad in ours.items():
        base = name.removeprefix("model.").removeprefix("towers.only.")
        wanted = theirs[name if name.startswith(("lm_head", "model.language_model")) else f"model.{base}"]
        assert torch.equal(grad, wanted), name


@pytest.mark.parametrize("model_type", ["llava", "voxtral", "qwen2_5_vl"])
@torch.no_grad()
def test_bfloat16_is_the_natives_bfloat16(model_type):
    native, composed, inputs, mine = one_source(model_type)
    native, composed = native.bfloat16(), composed.bfloat16()
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    mine = {k: v.bfloat16() if v.is_floating_point() else v for k, v in mine.items()}
    assert torch.equal(composed(**mine).logits, native(**half).logits)


@torch.no_grad()
def test_attention_implementations_reach_the_towers():
    native, composed, inputs, mine = one_source("llava")
    wanted = composed(**mine).logits
    composed.set_attn_implementation("eager")
    assert composed.model.towers["only"].vision_tower.config._attn_implementation == "eager"
    assert composed.model.language_model.config._attn_implementation == "eager"
    native.set_attn_implementation("eager")
    assert torch.equal(composed(**mine).logits, native(**inputs).logits)
    torch.testing.assert_close(composed(**mine).logits, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_whole_prefill_compiles_into_one_graph():
    _, composed, _, mine = one_source("llava")
    wanted = composed(**mine).logits
    compiled = torch.compile(composed, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**mine).logits, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_decoding_step_compiles_into_one_graph():
    from transformers import StaticCache

    _, composed, _, mine = one_source("llava")
    length = mine["input_ids"].shape[1]
    cache = StaticCache(config=composed.config.text_config, max_cache_len=length + 4)
    composed(**mine, past_key_values=cache)
    step = {"input_ids": torch.tensor([[7]]), "position_ids": torch.tensor([[length]])}
    eager_cache = StaticCache(config=composed.config.text_config, max_cache_len=length + 4)
    composed(**mine, past_key_values=eager_cache)
    wanted = composed(**step, past_key_values=eager_cache).logits
    compiled = torch.compile(composed, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**step, past_key_values=cache).logits, wanted, rtol=1e-5, atol=1e-5)


def test_modules_that_must_stay_whole_are_known_for_every_tower():
    _, composed, _, _ = one_source("llava")
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(composed._no_split_modules)
    _, composed, _, _ = one_source("voxtral")
    assert "embed_positions" in composed._keep_in_fp32_modules_strict
