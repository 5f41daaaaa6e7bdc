"""Routed models in every way that a model is run: caches, chunks, checkpointing, compilation, attention, copies."""

import copy
from collections import Counter

import pytest
import torch
from routed_models import gradients, masks_of, reference, routed
from torch import nn
from transformers import DynamicCache, StaticCache

from mcompose.modeling.groups.linear import ROUTE, decoder_layers, routed_linears
from mcompose.modeling.groups.specs import group_specs
from mcompose.modeling.groups.weight_routing import make_route


def close(ours, theirs, *, tight=True):
    tolerance = 1e-9 if tight else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def first_row(inputs):
    """The row with an image and a sound, which is the longest but one; without its padding."""
    real = inputs["attention_mask"][0].bool()
    return {
        "input_ids": inputs["input_ids"][:1, real],
        "sees__pixel_values": inputs["sees__pixel_values"][:1],
        "hears__input_features": inputs["hears__input_features"][:1],
    }


def cut(one, *, prefixes):
    """The same row in two turns: the image in the first, the sound in the second."""
    ids = one["input_ids"]
    at = int((ids[0] == (301 if prefixes else 122)).nonzero()[0])
    first = {"input_ids": ids[:, :at], "sees__pixel_values": one["sees__pixel_values"]}
    return first, {"input_ids": ids[:, at:], "hears__input_features": one["hears__input_features"]}


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("cached", ["dynamic", "static"])
@pytest.mark.parametrize("groups", ["dense", "mixed-text", "separate"])
@torch.no_grad()
def test_a_second_turn_with_media_is_routed(groups, cached, prefixes):
    model, inputs = routed(groups, prefixes=prefixes)
    one = first_row(inputs)
    wanted = reference(model, one["input_ids"])(**one).logits
    text = model.config.text_config
    cache = DynamicCache(config=text) if cached == "dynamic" else StaticCache(config=text, max_cache_len=64)
    turns = cut(one, prefixes=prefixes)
    logits = [model(**turn, past_key_values=cache).logits for turn in turns]
    close(torch.cat(logits, dim=1), wanted)


@pytest.mark.parametrize("groups", ["dense", "mixed-text", "separate", "stacked"])
@torch.no_grad()
def test_generated_tokens_use_the_text_group_with_and_without_a_cache(groups):
    model, inputs = routed(groups, prefixes=True)
    media = [120, 122]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = media
    made = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), made)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), made)
    whole = {
        **inputs,
        "input_ids": made,
        "attention_mask": nn.functional.pad(inputs["attention_mask"], (0, 6), value=1),
    }
    logits = reference(model, made)(**whole).logits[:, -7:-1]
    logits[..., media] = -torch.inf
    assert torch.equal(logits.argmax(-1), made[:, -6:])


@torch.no_grad()
def test_a_generated_placeholder_is_text():
    """The ids of placeholders may have rows in the table, so a step may read one without a medium."""
    model, inputs = routed("dense")
    one = first_row(inputs)
    cache = DynamicCache(config=model.config.text_config)
    model(**one, past_key_values=cache)
    step = model(input_ids=torch.tensor([[120]]), past_key_values=cache).logits
    other = reference(model, one["input_ids"])
    cache = DynamicCache(config=model.config.text_config)
    other(**one, past_key_values=cache)
    for _, inner in [(n, m) for n, m in other.named_modules() if type(m).__name__ == "Reference"]:
        inner.masks = {"image": torch.zeros((1, 1), dtype=torch.bool)}
    close(step, other(input_ids=torch.tensor([[120]]), past_key_values=cache).logits)


@torch.no_grad()
def test_nothing_is_left_behind_for_the_next_call():
    model, inputs = routed("dense")
    ids = torch.tensor([[1, 5, 6, 7]])
    wanted = model.model.language_model(input_ids=ids).last_hidden_state
    model(**inputs)
    assert torch.equal(model.model.language_model(input_ids=ids).last_hidden_state, wanted)
    assert torch.equal(model.model(input_ids=ids).last_hidden_state, wanted)


@torch.no_grad()
def test_embeddings_with_their_types_are_routed():
    model, inputs = routed("dense", prefixes=True)
    wanted = model(**inputs).logits
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    masks = masks_of(inputs["input_ids"])
    types = torch.where(masks["image"], 1, 0) + torch.where(masks["audio"], 3, 0)
    out = model(inputs_embeds=seen[0], mm_token_type_ids=types, attention_mask=inputs["attention_mask"])
    close(out.logits, wanted)


@pytest.fixture
def sorting(monkeypatch):
    """Tiny batches are laid out as large ones are."""
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._WORTH_SORTING", 0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("groups", ["dense", "stacked", "separate"])
def test_checkpointing_gives_the_same_gradients(groups, reentrant, sorting):
    model, inputs = routed(groups, prefixes=True)
    model.train()
    wanted = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, inputs)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        close(found[name], grad)


def two_forwards(model, inputs, *, reentrant):
    """Gradients of two batches with different routes, added up before one backward."""
    model.train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.zero_grad()
    text = {"input_ids": torch.tensor([[1, 5, 6, 7, 8, 9]]), "labels": torch.tensor([[1, 5, 6, 7, 8, 9]])}
    one = first_row(inputs)
    labels = one["input_ids"].masked_fill(one["input_ids"] >= 120, -100)
    first = model(**one, labels=labels, use_cache=False).loss
    second = model(**text, use_cache=False).loss
    (first + 2 * second).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_forwards_before_one_backward_keep_their_routes(reentrant, sorting):
    """A hook on the layer instead of its attention is not replayed, and gives wrong gradients here without a word."""
    model, inputs = routed("dense")
    wanted = two_forwards(copy.deepcopy(model), inputs, reentrant=None)
    found = two_forwards(model, inputs, reentrant=reentrant)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        close(found[name], grad)


def test_the_test_above_can_fail():
    """With routes left in the slots by the last forward, as a hook on the layer leaves them, gradients are wrong."""
    model, inputs = routed("dense")
    wanted = two_forwards(copy.deepcopy(model), inputs, reentrant=None)
    seen = Counter()
    for layer in decoder_layers(model.model.language_model):
        layer.self_attn._forward_pre_hooks.clear()
        layer.self_attn._forward_pre_hooks_with_kwargs.clear()

        def leave(module, args, kwargs):
            route = kwargs.pop(ROUTE, None)
            seen[module] += 1
            if seen[module] <= 2:  # the two forwards; some versions of transformers replay such a hook, others do not
                module.self_attn.route_slot.route = route
            return args, kwargs

        layer.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        found = two_forwards(model, inputs, reentrant=False)
    except (RuntimeError, ValueError):
        return  # torch or the linear saw other shapes in the recomputation
    assert any(not torch.allclose(found.get(name, torch.zeros_like(grad)), grad) for name, grad in wanted.items())


@pytest.mark.parametrize(
    "groups",
    [pytest.param("dense", marks=pytest.mark.slow), "stacked", pytest.param("separate", marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_the_prefill_compiles_into_one_graph_for_all_batches(groups):
    model, inputs = routed(groups, prefixes=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(**inputs).logits, model(**inputs).logits)
    turned = {**inputs, "input_ids": inputs["input_ids"].flip(0), "attention_mask": inputs["attention_mask"].flip(0)}
    with torch.compiler.set_stance("fail_on_recompile"):
        close(compiled(**turned).logits, model(**turned).logits)


@pytest.mark.slow
def test_training_compiles_into_one_graph():
    model, inputs = routed("mixed-text", prefixes=True)
    wanted = gradients(model, inputs)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100)
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, labels=labels, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            close(parameter.grad, wanted[name])


@torch.no_grad()
def test_a_decoding_step_compiles_into_one_graph():
    model, inputs = routed("separate")
    one = first_row(inputs)
    caches = [StaticCache(config=model.config.text_config, max_cache_len=64) for _ in range(2)]
    for cache in caches:
        model(**one, past_key_values=cache)
    step = {"input_ids": torch.tensor([[7]]), "position_ids": torch.tensor([[one["input_ids"].shape[1]]])}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(**step, past_key_values=caches[0]).logits, model(**step, past_key_values=caches[1]).logits)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@torch.no_grad()
def test_attention_implementations_agree(attention):
    model, inputs = routed("mixed", dtype=torch.float32)
    wanted = model(**inputs).logits
    model.model.language_model.set_attn_implementation(attention)
    real = inputs["attention_mask"].bool()
    close(model(**inputs).logits[real], wanted[real], tight=False)


def test_mixed_precision_is_the_masked_sum_too():
    model, inputs = routed("mixed-text", dtype=torch.float32)
    other = reference(model, inputs["input_ids"])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found, wanted = model(**inputs).logits, other(**inputs).logits
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("run", "scattered"), [(1, 0.25), (3, 2), (256, 2), (256, 0)])
@pytest.mark.parametrize("groups", ["dense", "mixed-text", "separate"])
def test_slices_gathered_and_sorted_tokens_agree(monkeypatch, groups, run, scattered):
    """Runs of so many tokens are slices; above so large a share of other tokens, all are sorted."""
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._WORTH_SORTING", 0)
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._LONG_RUN", run)
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._SCATTERED", scattered)
    model, inputs = routed(groups, prefixes=True)
    other = reference(model, inputs["input_ids"])
    with torch.no_grad():
        close(model(**inputs).logits, other(**inputs).logits)
    ours, theirs = gradients(model, inputs), gradients(other, inputs)
    assert ours.keys() <= theirs.keys()
    for name, grad in theirs.items():
        close(ours.get(name, torch.zeros_like(grad)), grad)


@pytest.mark.parametrize(("scattered", "sorts"), [(2, False), (0, True)])
def test_a_route_names_every_token_once(monkeypatch, scattered, sorts):
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._WORTH_SORTING", 0)
    monkeypatch.setattr("mcompose.modeling.groups.weight_routing._SCATTERED", scattered)
    kinds = torch.tensor([[0, 1, 1, 0, 2, 2], [1, 0, 2, 0, 0, 1]])
    specs = group_specs({"image": {"kind": "dense"}, "audio": {"kind": "low_rank", "rank": 2}}, base="separate")
    route = make_route(specs, {"image": kinds == 1, "audio": kinds == 2}, base="separate")
    assert (route.layout is not None) == sorts
    tokens = torch.arange(12.0)[:, None]
    laid = route.laid_out(tokens)
    found = {share.weights: sorted(share.of(laid)[:, 0].int().tolist()) for share in route.shares}
    assert found == {"own": [0, 3, 7, 9, 10], "image": [1, 2, 6, 11], "base": [4, 5, 8]}
    assert [(part.weights, sorted(part.of(laid)[:, 0].int().tolist())) for part in route.parts] == [
        ("audio", [4, 5, 8])
    ]
    assert torch.equal(route.put_back(laid), tokens)
    if sorts:
        assert all(share.index is None for share in (*route.shares, *route.parts))


@pytest.mark.parametrize("groups", ["dense", "mixed-text"])
def test_adapters_on_a_group_count(groups):
    """PEFT wraps the linears inside a group; their weights alone are not what they compute."""
    import peft

    model, inputs = routed(groups)
    target = r".*groups\.(image|audio)$" if groups == "dense" else r".*groups\.(image|audio\.lora_B)$"
    settings = peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), settings)
    with torch.no_grad():
        found = adapted(**inputs).logits
        assert not torch.allclose(found, model(**inputs).logits)
        close(found, reference(adapted.merge_and_unload(), inputs["input_ids"])(**inputs).logits)


@torch.no_grad()
def test_linears_that_were_replaced_are_told():
    model, inputs = routed("dense")
    for name, linear in list(routed_linears(model)):
        other = nn.Linear(linear.in_features, linear.out_features, bias=False, dtype=torch.float64)
        model.set_submodule(name, other)
    with pytest.raises(ValueError, match="got no route"):
        model(**inputs)


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own():
    model, inputs = routed("dense")
    wanted = model(**inputs).logits
    other = copy.deepcopy(model)
    for _, linear in routed_linears(model):
        linear.groups["image"].weight.zero_()
    close(other(**inputs).logits, wanted)
    assert not torch.allclose(model(**inputs).logits, wanted)
