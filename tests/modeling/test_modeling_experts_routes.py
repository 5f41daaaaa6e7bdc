"""The router, and what it does to a batch: classes, rules, slots, and that only what is needed runs."""

import pytest
import torch
from composed_models import compose, placeholder_rows
from expert_models import (
    AUDIO,
    BEGIN,
    END,
    IMAGE,
    SLOT,
    block,
    image_router,
    maths,
    named,
    noise,
    patches,
    picked,
    pixels,
    speech,
    squares,
    two,
    with_experts,
)
from tiny_configs import TOKENS
from tiny_models import tiny_model

from mcompose.modeling.experts.router import chosen_experts, router_loss

IM = [IMAGE] * 4
CLASSES = ["none", "maths", "charts"]


@pytest.fixture(scope="module")
def model():
    return two()[0]


def auto(count, **more):
    """What the processor gives with experts="auto": all experts' inputs of all items."""
    return {**pixels(count), **named("charts", patches(count)), **named("maths", squares(count)), **more}


def force_router(model, classes, count):
    """Weights that send the first images to the given classes."""
    tower = model.model.towers["sees"]
    cls_IW = tower.vision_tower(pixels(count)["sees__pixel_values"]).last_hidden_state[:, 0]
    wanted = torch.nn.functional.one_hot(torch.tensor(classes), 3).float() * 5
    model.model.routers["image"].weight.copy_((torch.linalg.pinv(cls_IW) @ wanted).T)
    return cls_IW


@torch.no_grad()
def test_the_router_reads_the_class_token_of_the_run_that_makes_the_tokens(model):
    calls = []
    tower = model.model.towers["sees"].vision_tower
    handle = tower.register_forward_hook(lambda m, args, out: calls.append(out.last_hidden_state))
    ids = torch.tensor([[1, *IM, *block("maths", 4), 5, *IM, 6]])
    given = {**pixels(2), **named("maths", squares(1))}
    out = model(input_ids=ids, **given, router_labels=torch.tensor([1, 0]))
    handle.remove()
    assert len(calls) == 1
    wanted = tower(given["sees__pixel_values"]).last_hidden_state[:, 0] @ model.model.routers["image"].weight.T
    torch.testing.assert_close(out.router_logits["image"], wanted)
    loss = -wanted.log_softmax(-1)[[0, 1], [1, 0]].mean()
    torch.testing.assert_close(out.router_loss, loss)
    assert torch.equal(model(input_ids=ids, **given).logits, out.logits)
    labels = torch.where(ids < 100, ids, -100)
    plain = model(input_ids=ids, **given, labels=labels).loss
    both = model(input_ids=ids, **given, labels=labels, router_labels={"image": torch.tensor([1, 0])}).loss
    torch.testing.assert_close(both, plain + loss)


def test_rules_by_hand():
    logits = torch.tensor([[3.0, 1, 2], [1, 3, 2], [1.0, 2, 3], [0, 0.1, 0]])
    ask = {"classes": CLASSES}
    assert chosen_experts(logits, ask) == [[], ["maths"], ["charts"], ["maths"]]
    # exp(3) / (e + e^2 + e^3) = 0.665; exp(0.1) / (2 + exp(0.1)) = 0.356
    rule = {"kind": "threshold", "threshold": 0.6}
    assert chosen_experts(logits, {**ask, "rule": rule}) == [[], ["maths"], ["charts"], []]
    assert chosen_experts(logits, {**ask, "rule": {"kind": "threshold", "threshold": 0.67}}) == [[], [], [], []]
    # A low threshold favours experts: none 0.45, charts 0.40, maths 0.15.
    close = torch.log(torch.tensor([[0.45, 0.15, 0.40]]))
    assert chosen_experts(close, {**ask, "rule": {"kind": "threshold", "threshold": 0.39}}) == [["charts"]]
    assert chosen_experts(close, {**ask, "rule": {"kind": "threshold", "threshold": 0.41}}) == [[]]
    assert chosen_experts(close, ask) == [[]]
    assert chosen_experts(logits, {**ask, "rule": {"kind": "top_k", "k": 2}}) == [
        [], ["maths", "charts"], ["charts", "maths"], ["maths"],
    ]  # fmt: skip
    assert chosen_experts(logits[:3], {**ask, "rule": {"kind": "top_k", "k": 1}}) == [[], ["maths"], ["charts"]]


@torch.no_grad()
def test_class_0_inserts_nothing_and_class_i_inserts_expert_i(model):
    force_router(model, [0, 1, 2, 1], 4)
    rows = [[1, *IM, SLOT, 5, *IM, SLOT, 6], [2, *IM, SLOT, 7, *IM, SLOT, 8, 9], [3, 4]]
    full = [
        [1, *IM, 5, *IM, *block("maths", 4), 6],
        [2, *IM, *block("charts", 6), 7, *IM, *block("maths", 4), 8, 9],
        [3, 4],
    ]
    for side in ("left", "right"):
        ids, mask = placeholder_rows(16, *rows, side=side)
        labels = torch.where((ids < 100) & (mask == 1), ids, -100)
        types = torch.where(ids == IMAGE, 1, 0)
        out = model.route(ids, attention_mask=mask, labels=labels, mm_token_type_ids=types, **auto(4))
        longest = max(map(len, full))
        wanted, wanted_mask = placeholder_rows(longest, *full, side=side)
        assert torch.equal(out["input_ids"], wanted)
        assert torch.equal(out["attention_mask"], wanted_mask)
        assert torch.equal(out["labels"], torch.where((wanted < 100) & (wanted_mask == 1), wanted, -100))
        blocks = (wanted == BEGIN) | (wanted == END) | (wanted > SLOT)
        assert torch.equal(out["mm_token_type_ids"], torch.where(blocks, 5, torch.where(wanted == IMAGE, 1, 0)))
        assert out["routes"] == [[], ["maths"], ["charts"], ["maths"]]
        by_name = {
            **pixels(4),
            **named("maths", picked(squares(4), [1, 3])),
            **named("charts", picked(patches(4), [2])),
        }
        plain = model(input_ids=wanted, attention_mask=wanted_mask, labels=out["labels"], **by_name)
        routed = model(**out)
        assert torch.equal(routed.loss, plain.loss)
        assert torch.equal(routed.logits, plain.logits)


@torch.no_grad()
def test_experts_can_be_forced(model):
    ids = torch.tensor([[1, *IM, SLOT, 5, *IM, SLOT, 6]])
    by = lambda experts: model.route(ids, experts=experts, **auto(2))  # noqa: E731
    assert by("none")["input_ids"].tolist() == [[1, *IM, 5, *IM, 6]]
    assert by("maths")["input_ids"].tolist() == [[1, *IM, *block("maths", 4), 5, *IM, *block("maths", 4), 6]]
    assert by([None, "charts"])["input_ids"].tolist() == [[1, *IM, 5, *IM, *block("charts", 6), 6]]
    assert by(["none", "maths"])["routes"] == [[], ["maths"]]
    assert by({"image": [None, "maths"]})["routes"] == [[], ["maths"]]
    assert by({"image": "charts"})["routes"] == [["charts"], ["charts"]]
    both = by([("charts", "maths"), None])["input_ids"].tolist()
    assert both == [[1, *IM, *block("charts", 6), *block("maths", 4), 5, *IM, 6]]
    with pytest.raises(ValueError, match="says nothing of image items"):
        by({"audio": "maths"})
    with pytest.raises(ValueError, match="names 1 items, and the batch has 2 slots"):
        by(["maths"])
    with pytest.raises(ValueError, match="no expert 'tables'"):
        by("tables")


@torch.no_grad()
def test_several_experts_of_one_item_most_probable_first():
    model, _ = two(router={"rule": {"kind": "top_k", "k": 2}})
    cls_IW = force_router(model, [2, 0], 2)
    model.model.routers["image"].weight[1] += 0.1 * cls_IW[0] / cls_IW[0].norm() ** 2
    ids = torch.tensor([[1, *IM, SLOT, 5, *IM, SLOT, 6]])
    out = model.route(ids, **auto(2))
    assert out["routes"] == [["charts", "maths"], []]
    assert out["input_ids"].tolist() == [[1, *IM, *block("charts", 6), *block("maths", 4), 5, *IM, 6]]
    model(**out)


@torch.no_grad()
def test_only_what_is_needed_runs(model):
    force_router(model, [0, 1, 1], 3)
    calls = {"tower": 0, "maths": [], "charts": []}
    core = model.model

    def count(module, args):
        calls["tower"] += 1

    handles = [core.towers["sees"].vision_tower.register_forward_pre_hook(count)]
    for name, expert in core.experts.items():
        handles.append(
            expert.encoder.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: calls[name].append(len(kwargs[core.experts[name].main_input])),
                with_kwargs=True,
            )
        )
    ids, mask = placeholder_rows(13, [1, *IM, SLOT, 5, *IM, SLOT, 6], [1, *IM, SLOT], side="left")
    model.generate(ids, attention_mask=mask, **auto(3), max_new_tokens=3, do_sample=False, pad_token_id=0)
    for handle in handles:
        handle.remove()
    assert calls == {"tower": 1, "maths": [2], "charts": []}


@torch.no_grad()
def test_slots_without_a_choice_are_refused(model):
    with pytest.raises(ValueError, match="1 <expert> slots that no expert was chosen for: call model"):
        model(input_ids=torch.tensor([[1, *IM, SLOT, 5]]), **pixels(1))
    with pytest.raises(ValueError, match="stands after no item"):
        model.route(torch.tensor([[1, SLOT, *IM, SLOT]]), **auto(1))
    with pytest.raises(ValueError, match="with and without an <expert> slot"):
        model.route(torch.tensor([[1, *IM, SLOT, 4, *IM]]), **auto(2))
    force_router(model, [1], 1)
    with pytest.raises(ValueError, match="none of its inputs"):
        model.route(torch.tensor([[1, *IM, SLOT]]), **pixels(1))
    with pytest.raises(ValueError, match="has 2 rows for 1 items"):
        model.route(torch.tensor([[1, *IM, SLOT]]), **{**auto(1), **named("maths", squares(2))})


@torch.no_grad()
def test_positions_that_were_given_move_with_the_blocks(model):
    """A column that is padding in every row is not kept."""
    ids = torch.tensor([[0, 1, *IM, SLOT, 5, *IM, SLOT, 6]])
    mask = (torch.arange(14) > 0).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model.route(ids, attention_mask=mask, position_ids=positions, experts=["maths", None], **auto(2))
    assert out["position_ids"].tolist() == [[*range(17)]]
    three = positions[None].expand(3, -1, -1)
    out = model.route(ids, attention_mask=mask, position_ids=three, experts=["maths", None], **auto(2))
    assert out["position_ids"].tolist() == [[[*range(17)]]] * 3


@torch.no_grad()
def test_a_batch_without_slots_passes_through(model):
    ids = torch.tensor([[1, 2, 3]])
    out = model.route(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(out["input_ids"], ids)
    assert out["routes"] == []
    assert torch.equal(model(**out).logits, model(input_ids=ids).logits)


def test_text_alone_has_a_finite_router_loss(model):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model.zero_grad()
    out = model(input_ids=ids, labels=ids, router_labels=torch.tensor([-100, -100]))
    assert out.router_loss == 0
    assert out.router_logits["image"].shape == (0, 3)
    assert torch.equal(out.loss, model(input_ids=ids, labels=ids).loss)
    out.loss.backward()
    assert not model.model.routers["image"].weight.grad.any()
    assert model(input_ids=ids, labels=ids, router_labels=torch.zeros(0, dtype=torch.long)).loss.isfinite()
    with pytest.raises(ValueError, match="the batch holds no image"):
        model(input_ids=ids, router_labels=torch.tensor([0, -100]))


@torch.no_grad()
def test_items_without_a_label_do_not_count(model):
    ids = torch.tensor([[1, *IM, 5, *IM, 6]])
    out = model(input_ids=ids, **pixels(2), router_labels=torch.tensor([-100, 2]))
    torch.testing.assert_close(out.router_loss, -out.router_logits["image"].log_softmax(-1)[1, 2])
    nothing = model(input_ids=ids, **pixels(2), router_labels=torch.tensor([-100, -100]))
    assert nothing.router_loss == 0
    with pytest.raises(ValueError, match="gave 2 tiles, and how they belong to 3 items"):
        model(input_ids=ids, **pixels(2), router_labels=torch.tensor([0, 0, 1]))


def test_several_batches_of_one_step_share_a_divisor():
    logits, labels = noise(5, 3), torch.tensor([0, 1, 2, -100, 1])
    weight = torch.zeros(3, 4)
    whole = router_loss(logits, labels, weight=weight, modality="image")
    parts = [
        router_loss(logits[part], labels[part], weight=weight, modality="image", items_in_batch=4)
        for part in (slice(0, 1), slice(1, 5))
    ]
    torch.testing.assert_close(whole, parts[0] + parts[1])


@torch.no_grad()
def test_none_with_untrained_experts_is_the_model_without_experts(model):
    """Exactly, through slots and without them."""
    source = tiny_model("llava")
    plain = compose(source, {"sees": source}, {"sees": ["image"]}, {"image": TOKENS["image"]})
    ids, mask = placeholder_rows(12, [1, *IM, 5, *IM, 6], [1, *IM, 7], [4, 5], side="left")
    wanted = plain(input_ids=ids, attention_mask=mask, **pixels(3))
    assert torch.equal(model(input_ids=ids, attention_mask=mask, **pixels(3)).logits, wanted.logits)
    slots, slot_mask = placeholder_rows(14, [1, *IM, SLOT, 5, *IM, SLOT, 6], [1, *IM, SLOT, 7], [4, 5], side="left")
    out = model.route(slots, attention_mask=slot_mask, experts="none", **auto(3))
    assert torch.equal(out["input_ids"], ids[:, -11:])
    short = plain(input_ids=ids[:, -11:], attention_mask=mask[:, -11:], **pixels(3)).logits
    assert torch.equal(model(**out).logits, short)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generating_with_slots_is_routing_and_generating_is_naming_the_expert(model, beams):
    force_router(model, [0, 1, 2], 3)
    slots, mask = placeholder_rows(13, [1, *IM, SLOT, 5, *IM, SLOT, 6], [1, *IM, SLOT, 7], side="left")
    rows = [[1, *IM, 5, *IM, *block("maths", 4), 6], [1, *IM, *block("charts", 6), 7]]
    full, full_mask = placeholder_rows(17, *rows, side="left")
    by_name = {**pixels(3), **named("maths", picked(squares(3), [1])), **named("charts", picked(patches(3), [2]))}
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    asked |= {"num_beams": beams, "num_return_sequences": beams}
    one = model.generate(slots, attention_mask=mask, **auto(3), **asked)
    routed = model.route(slots, attention_mask=mask, **auto(3))
    two_steps = model.generate(**{k: v for k, v in routed.items() if k != "routes"}, **asked)
    again = model.generate(**routed, **asked)
    wanted = model.generate(full, attention_mask=full_mask, **by_name, **asked)
    assert torch.equal(two_steps, wanted)
    assert torch.equal(again, wanted)
    assert torch.equal(one[:, :13], slots.repeat_interleave(beams, dim=0))
    assert torch.equal(one[:, 13:], wanted[:, 17:])
    forced = model.generate(slots, attention_mask=mask, experts=[None, "maths", "charts"], **auto(3), **asked)
    assert torch.equal(forced, one)
    kept = model.generate(slots, attention_mask=mask, **auto(3), **asked, return_dict_in_generate=True)
    assert torch.equal(kept.sequences, one)


@pytest.mark.parametrize("padding", ["keep", "mask", "drop"])
@torch.no_grad()
def test_each_generated_token_is_the_forward_pass_of_what_came_before(padding):
    """Also with padding that must stay out of sight, and at its positions, in every later step."""
    tokens = "attention_mask" if padding == "drop" else 6
    model, _ = two(charts={"padding": padding, "tokens": tokens})
    slots, mask = placeholder_rows(8, [1, *IM, SLOT, 5, 6], [1, *IM, SLOT, 7], side="left")
    inputs = named("charts", patches(2, real=[3, 5]))
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = model.generate(slots, attention_mask=mask, **pixels(2), **inputs, **asked, experts="charts")
    for row, (real, tail) in enumerate(((3, [5, 6]), (5, [7]))):
        count = real if padding == "drop" else 6
        ids = [1, *IM, *block("charts", count), *tail]
        one = {
            **{k: v[row : row + 1] for k, v in pixels(2).items()},
            **{k: v[row : row + 1] for k, v in inputs.items()},
        }
        for step in range(5):
            logits = model(input_ids=torch.tensor([ids]), **one).logits
            assert int(logits[0, -1].argmax()) == int(made[row, 8 + step])
            ids.append(int(made[row, 8 + step]))


@torch.no_grad()
def test_caches_do_not_change_what_is_said(model):
    force_router(model, [2, 1], 2)
    ids, mask = placeholder_rows(9, [1, *IM, SLOT, 5, 6], [1, *IM, SLOT, 7], side="left")
    asked = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    asked |= {"return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(ids, attention_mask=mask, **auto(2), **asked)
    for other in ({"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        again = model.generate(ids, attention_mask=mask, **auto(2), **asked, **other)
        assert torch.equal(again.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(again.logits), torch.stack(plain.logits), rtol=1e-5, atol=1e-5)


def test_misspelt_inputs_are_refused_by_generate(model):
    with pytest.raises(ValueError, match="needs maths__pixel_values"):
        model.generate(torch.tensor([[1, 2]]), maths__pixel_valuse=noise(1, 3, 28, 28), max_new_tokens=1)


@torch.no_grad()
def test_images_and_sounds_have_routers_of_their_own():
    natives = {"sees": tiny_model("llava"), "hears": tiny_model("voxtral")}
    routers = {
        **image_router("maths"),
        "audio": {"classes": ["none", "speech"], "feature": "mean", "tile": "mean", "width": 32},
    }
    model, _ = with_experts(
        natives, {"sees": ["image"], "hears": ["audio"]}, {"maths": maths(), "speech": speech()}, routers
    )
    image, sound = pixels(1)["sees__pixel_values"], noise(2, 8, 80, seed=6)
    seen = natives["sees"].model.vision_tower(image).last_hidden_state[:, 0]
    heard = natives["hears"].model.audio_tower(sound).last_hidden_state.mean(1)
    model.model.routers["image"].weight.copy_(torch.stack([-seen[0], seen[0]]))
    model.model.routers["audio"].weight.copy_((torch.linalg.pinv(heard) @ torch.tensor([[5.0, 0], [0, 5]])).T)
    au = [AUDIO] * 10
    ids = torch.tensor([[1, *au, SLOT, 5, *IM, SLOT, 6, *au, SLOT, 7]])
    given = {"sees__pixel_values": image, "hears__input_features": sound}
    given |= {**named("maths", squares(1)), "speech__input_features": noise(2, 8, 20, seed=7)}
    out = model.route(ids, **given)
    assert out["routes"] == [[], ["maths"], ["speech"]]
    full = [1, *au, 5, *IM, *block("maths", 4), 6, *au, *block("speech", 10), 7]
    assert out["input_ids"].tolist() == [full]
    alone = {**given, "speech__input_features": noise(2, 8, 20, seed=7)[1:]}
    wanted = model(input_ids=torch.tensor([full]), **alone).logits
    assert torch.equal(model(**out).logits, wanted)
    with pytest.raises(ValueError, match="must be given by modality"):
        model(input_ids=torch.tensor([full]), **alone, router_labels=torch.tensor([0]))
    labels = {"image": torch.tensor([1]), "audio": torch.tensor([0, 1])}
    found = model(input_ids=torch.tensor([full]), **alone, router_labels=labels)
    torch.testing.assert_close(found.router_logits["audio"], torch.tensor([[5.0, 0], [0, 5]]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="reads audio, not image"):
        model.route(ids, **given, experts=[None, "speech", None])
