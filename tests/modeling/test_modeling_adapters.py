"""Soft mixtures of low-rank experts beside one linear, held against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mcompose.modeling.adapters.layer import AdapterSet
from mcompose.modeling.adapters.run import AdapterRun, sample_places

INPUTS, OUTPUTS, EXPERTS, RANK, TOKENS = 6, 5, 3, 2, 7


def made(mode="token", *, seed=0, **entry):
    """A set with values, in float64."""
    settings = {"experts": EXPERTS, "rank": RANK, "mode": mode, **entry}
    torch.set_default_dtype(torch.float64)
    try:
        one = AdapterSet("mm", "here", nn.Linear(INPUTS, OUTPUTS), settings)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return one.eval()


def tokens(rows=2, length=TOKENS, seed=1):
    return torch.randn(rows, length, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_of(rows=2, length=TOKENS, *, origin=None, real=None, prompt=None, **changes):
    real = torch.ones(rows, length, dtype=torch.bool) if real is None else real
    return AdapterRun(origin or {}, real, prompt, samples=sample_places(real, None), **changes)


@torch.no_grad()
def answer(one, x, run):
    made = one(x.reshape(-1, INPUTS), run, tuple(x.shape[:2]))
    return torch.zeros(*x.shape[:2], OUTPUTS, dtype=x.dtype) if made is None else made.view(*x.shape[:2], OUTPUTS)


def logits(one, token):
    """One logit an expert, as the router's rows and the token have length 1."""
    unit = token / token.norm()
    return [float((one.scale * (row / row.norm() @ unit)).detach()) for row in one.router]


def softmax(values):
    top = max(values)
    parts = [math.exp(value - top) for value in values]
    return [part / sum(parts) for part in parts]


def expert(one, number, z):
    rows = slice(number * RANK, (number + 1) * RANK)
    return (z @ one.down[rows].T) @ one.up[rows] * one.factor


def by_token(one, row):
    out = []
    for token in row:
        gates = softmax(logits(one, token))
        out.append(sum(gate * expert(one, e, token) for e, gate in enumerate(gates)))
    return torch.stack(out)


def by_slots(one, row, seen):
    """Each slot the mean of the seen tokens; each token combines the slots."""
    table = [logits(one, token) for token in row]
    slots = []
    for e in range(EXPERTS):
        shares = softmax([table[t][e] for t in seen])
        slots.append(sum(share * row[t] for share, t in zip(shares, seen, strict=True)))
    answers = [expert(one, e, slot) for e, slot in enumerate(slots)]
    return torch.stack([sum(g * y for g, y in zip(softmax(table[t]), answers, strict=True)) for t in range(len(row))])


@torch.no_grad()
def reference(one, row, mode, prompt=TOKENS):
    if mode == "token":
        return by_token(one, row)
    if mode == "prefix":
        return by_slots(one, row, range(prompt))
    if mode == "causal":
        return torch.stack([by_slots(one, row[: t + 1], range(t + 1))[t] for t in range(len(row))])
    gates = softmax(logits(one, row[:prompt].mean(0)))
    return torch.stack([sum(g * expert(one, e, token) for e, g in enumerate(gates)) for token in row])


MODES = ("token", "prefix", "causal", "merged")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalise", ["l2", "rms", "none"])
def test_each_mode_is_its_written_out_sum(mode, normalise, monkeypatch):
    one, x = made(mode, alpha=3.0, normalise=normalise), tokens()
    if normalise == "rms":
        monkeypatch.setitem(globals(), "logits", lambda one, token: [
            float(row @ token / (token.square().mean() + 1e-6).sqrt()) for row in one.router
        ])  # fmt: skip
    if normalise == "none":
        monkeypatch.setitem(globals(), "logits", lambda one, token: [float(row @ token) for row in one.router])
    prompt = torch.arange(TOKENS)[None].expand(2, -1) < 4
    found = answer(one, x, run_of(prompt=prompt))
    for row, got in zip(x, found, strict=True):
        torch.testing.assert_close(got, reference(one, row, mode, prompt=4), atol=1e-5, rtol=1e-5)


def test_slots_of_an_encoder_are_the_written_out_sum():
    one, x = made("slot"), tokens()
    with torch.no_grad():
        found = one(x.reshape(-1, INPUTS), None, (2, TOKENS)).view(2, TOKENS, OUTPUTS)
    for row, got in zip(x, found, strict=True):
        torch.testing.assert_close(got, by_slots(one, row, range(TOKENS)), atol=1e-6, rtol=1e-6)
    with torch.no_grad(), pytest.raises(ValueError, match="runs all items as one row"):
        one(x[0], None, (TOKENS,))


@pytest.mark.parametrize("mode", ["prefix", "causal", "slot"])
def test_of_one_token_slots_are_gates(mode):
    one, x = made(mode), tokens(length=1)
    if mode == "slot":
        with torch.no_grad():
            found = one(x.reshape(-1, INPUTS), None, (2, 1)).view(2, 1, OUTPUTS)
    else:
        found = answer(one, x, run_of(length=1))
    gated = made("token")
    torch.testing.assert_close(found, answer(gated, x, run_of(length=1)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_one_expert_of_one_token_each_is_lora(mode):
    """With one expert all gates are 1; what mixes tokens is compared on rows of one token."""
    base = nn.Sequential()
    base.add_module("proj", nn.Linear(INPUTS, OUTPUTS))
    base = base.double()
    peft = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=5, target_modules=["proj"]))
    layer = peft.base_model.model.proj
    one = made(mode, experts=1, alpha=5.0)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(one.down)
        layer.lora_B["default"].weight.copy_(one.up.T)
        x = tokens(rows=5, length=1)
        expected = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(answer(one, x, run_of(rows=5, length=1)), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_new_experts_add_nothing_and_their_routers_learn_from_the_second_step(mode):
    one, x = made(mode), tokens()
    nn.init.zeros_(one.up)
    assert not answer(one, x, run_of()).any()
    optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        found = one(x.reshape(-1, INPUTS), run_of(), (2, TOKENS))
        (found - torch.ones_like(found)).square().mean().backward()
        assert bool(one.router.grad.any()) == bool(step)
        optimizer.step()


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_experts_means_nothing(mode):
    one, x = made(mode), tokens()
    turned = made(mode)
    order = [2, 0, 1]
    with torch.no_grad():
        rows = [e * RANK + k for e in order for k in range(RANK)]
        turned.down.copy_(one.down[rows])
        turned.up.copy_(one.up[rows])
        turned.router.copy_(one.router[order])
    torch.testing.assert_close(answer(turned, x, run_of()), answer(one, x, run_of()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_leaks_from_the_future(mode):
    one, x = made(mode), tokens()
    prompt = torch.arange(TOKENS)[None].expand(2, -1) < 4
    before = answer(one, x, run_of(prompt=prompt))
    changed = x.clone()
    changed[:, -1] += 10
    after = answer(one, changed, run_of(prompt=prompt))
    torch.testing.assert_close(after[:, :-1], before[:, :-1], atol=1e-12 if mode != "causal" else 1e-6, rtol=0)
    assert not torch.allclose(after[:, -1], before[:, -1])


def test_slots_of_an_encoder_do_leak_from_the_future():
    one, x = made("slot"), tokens()
    changed = x.clone()
    changed[:, -1] += 10
    with torch.no_grad():
        a, b = (one(z.reshape(-1, INPUTS), None, (2, TOKENS)).view(2, TOKENS, OUTPUTS) for z in (x, changed))
    assert not torch.allclose(a[:, 0], b[:, 0])


@pytest.mark.parametrize("mode", MODES)
def test_step_by_step_is_all_at_once(mode):
    one, x = made(mode), tokens()
    prompt = torch.arange(TOKENS)[None].expand(2, -1) < 4
    whole = answer(one, x, run_of(prompt=prompt))
    states: dict = {}
    steps = [answer(one, x[:, :4], run_of(length=4, states=states))]
    for t in range(4, TOKENS):
        steps.append(answer(one, x[:, t : t + 1], run_of(length=1, states=states, continued=True)))
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_padding_on_the_left_and_other_rows_change_nothing(mode):
    one, x = made(mode), tokens(rows=1)
    alone = answer(one, x, run_of(rows=1))
    padded = torch.cat([torch.full((1, 3, INPUTS), 50.0, dtype=torch.float64), x], dim=1)
    both = torch.cat([padded, tokens(rows=1, length=TOKENS + 3, seed=9)])
    real = torch.ones(2, TOKENS + 3, dtype=torch.bool)
    real[0, :3] = False
    found = answer(one, both, run_of(length=TOKENS + 3, real=real))
    torch.testing.assert_close(found[0, 3:], alone[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_packed_samples_do_not_see_each_other(mode):
    one, x = made(mode), tokens()
    apart = answer(one, x, run_of())
    row = torch.cat([x[0], x[1, :4]])[None]
    positions = torch.cat([torch.arange(TOKENS), torch.arange(4)])[None]
    real = torch.ones(1, TOKENS + 4, dtype=torch.bool)
    packed = AdapterRun({}, real, samples=sample_places(real, positions))
    found = answer(one, row, packed)[0]
    torch.testing.assert_close(found[:TOKENS], apart[0], atol=1e-6, rtol=1e-6)
    shorter = answer(one, x[1:, :4], run_of(rows=1, length=4))[0]
    torch.testing.assert_close(found[TOKENS:], shorter, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_set_of_one_modality_neither_sees_nor_changes_other_tokens(mode):
    one, x = made(mode, modalities=["image"]), tokens()
    image = torch.zeros(2, TOKENS, dtype=torch.bool)
    image[0, 1:4] = True  # the second row has none
    found = answer(one, x, run_of(origin={"image": image}))
    assert not found[~image].any()
    alone = answer(made(mode), x[:1, 1:4], run_of(rows=1, length=3))
    torch.testing.assert_close(found[0, 1:4], alone[0], atol=1e-6, rtol=1e-6)
    text = answer(made(mode, modalities=["text"]), x, run_of(origin={"image": image}))
    assert not text[image].any()
    assert torch.isfinite(text).all()
    torch.testing.assert_close(text[1], answer(made(mode), x[1:], run_of(rows=1))[0], atol=1e-6, rtol=1e-6)


def test_figures_are_entropy_and_shares_by_modality():
    one, x = made("token"), tokens()
    image = torch.zeros(2, TOKENS, dtype=torch.bool)
    image[:, :2] = True
    run = run_of(origin={"image": image})
    run.figures = {}
    answer(one, x, run)
    (row,) = run.figures["mm"]["image"]
    gates = torch.tensor([softmax(logits(one, token)) for token in x[:, :2].reshape(-1, INPUTS)])
    torch.testing.assert_close(row["share"].double(), gates.double().mean(0), atol=1e-6, rtol=0)
    entropy = -(gates * gates.log()).sum(-1).mean()
    torch.testing.assert_close(row["entropy"].double(), entropy.double(), atol=1e-6, rtol=0)
    assert list(run.figures["mm"]) == ["image", "text"]
