"""Hidden tokens: nothing that is kept may depend on them, however they are hidden, and dropping equals masking."""

import pytest
import torch
from composed_models import compose, placeholder_rows
from expert_models import (
    IMAGE,
    block,
    charts,
    image_router,
    maths,
    named,
    noise,
    patches,
    pixels,
    squares,
    two,
    with_experts,
)
from tiny_models import tiny_inputs, tiny_model

IM = [IMAGE] * 4
ATTENTION = ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
"""The last is compiled on first use, which takes minutes."""
ROWS = [
    [1, *IM, *block("maths", 4), 5, 6, *IM, *block("charts", 6), 7, 8, 9],
    [2, *IM, *block("charts", 6), 10, 11],
    [3, 4, 12],
]
HIDDEN = [[1, 3, 13, 16], [2, 3, 4], []]
"""Places of hidden image tokens, counted from the row's first token."""


def batch(side):
    """Ids, what is padding, the mask with holes, labels, and the media."""
    ids, padding = placeholder_rows(30, *ROWS, side=side)
    mask = padding.clone()
    for row, places in enumerate(HIDDEN):
        start = 30 - len(ROWS[row]) if side == "left" else 0
        for place in places:
            assert ids[row, start + place] == IMAGE
            mask[row, start + place] = 0
    given = {"input_ids": ids, "attention_mask": mask, "padding_mask": padding}
    labels = torch.where((ids < 100) & (padding == 1), ids, -100)
    # What follows an image directly is not learnt.
    labels[:, 1:][ids[:, :-1] == IMAGE] = -100
    media = {**pixels(3), **named("maths", squares(1)), **named("charts", patches(2))}
    return given, labels, media


def perturbed(model, given, media):
    """Features in which those of hidden tokens are something else."""
    core = model.model
    features = core.encode_media(core.media_inputs(media))
    image = given["input_ids"] == IMAGE
    hidden_N = (given["attention_mask"] == 0)[image]
    assert hidden_N.sum() == 7
    made = features["image"]
    made.x_ND = made.x_ND.clone()
    made.x_ND[hidden_N] = noise(7, made.x_ND.shape[1], seed=99) * 30
    made.deepstack = [x.clone() for x in made.deepstack]
    for x in made.deepstack:
        x[hidden_N] = 30.0
    return features


def kept_logits(out, given, how):
    """Logits of the tokens that are seen, row by row."""
    if how != "drop":
        return out.logits[given["attention_mask"] == 1]
    places = out.kept_places
    assert [row[row >= 0].tolist() for row in places] == [
        row.nonzero()[:, 0].tolist() for row in given["attention_mask"] == 1
    ]
    return out.logits[places >= 0]


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(attention):
        if attention not in made:
            made[attention] = two(attention, mask_token=True)[0]
        return made[attention]

    return get


@pytest.mark.parametrize("how", ["mask", "drop", "learned"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_a_hidden_token_reaches_nothing_that_is_kept(models, attention, side, how):
    model = models(attention)
    given, _, media = batch(side)
    seen = model(**given, **media, hidden=how)
    other = model(**given, **media, hidden=how, mm_features=perturbed(model, given, media))
    assert torch.equal(kept_logits(seen, given, how), kept_logits(other, given, how))
    # The same perturbation is felt when nothing is hidden.
    whole = {**given, "attention_mask": given["padding_mask"]}
    plain = model(**whole, **media).logits
    felt = model(**whole, **media, mm_features=perturbed(model, given, media)).logits
    assert (plain - felt)[given["attention_mask"] == 1].abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_dropping_is_masking(models, attention, side):
    model = models(attention)
    given, labels, media = batch(side)
    masked = model(**given, **media, labels=labels, hidden="mask")
    dropped = model(**given, **media, labels=labels, hidden="drop")
    assert dropped.logits.shape[1] == 24
    torch.testing.assert_close(
        kept_logits(dropped, given, "drop"), kept_logits(masked, given, "mask"), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(dropped.loss, masked.loss, rtol=1e-6, atol=1e-6)
    full = model(**{**given, "attention_mask": given["padding_mask"]}, **media, labels=labels).loss
    assert abs(float(full - masked.loss)) > 1e-4


def gradients(model, checkpointing, **inputs):
    model.train()
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    out = model(**inputs, use_cache=False)
    out.loss.backward()
    model.gradient_checkpointing_disable()
    model.eval()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_are_those_of_masking_with_checkpointing_too(models, side):
    model = models("sdpa")
    given, labels, media = batch(side)
    inputs = {**given, **media, "labels": labels, "router_labels": torch.tensor([1, 2, 2])}
    masked, wanted = gradients(model, False, **inputs, hidden="mask")
    assert "model.experts.maths.projector.layers.0.weight" in wanted
    assert "model.routers.image.weight" in wanted
    for how, checkpointing in (("mask", True), ("drop", False), ("drop", True)):
        out, found = gradients(model, checkpointing, **inputs, hidden=how)
        torch.testing.assert_close(out.loss, masked.loss, rtol=1e-6, atol=1e-6)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_hidden_tokens_features_get_no_gradient(models, checkpointing):
    model = models("sdpa")
    given, labels, media = batch("left")
    hidden_N = (given["attention_mask"] == 0)[given["input_ids"] == IMAGE]
    core = model.model
    for how in ("mask", "drop", "learned"):
        features = core.encode_media(core.media_inputs(media))
        leaf = features["image"].x_ND.detach().requires_grad_()
        features["image"].x_ND = leaf
        gradients(model, checkpointing, **given, **media, labels=labels, mm_features=features, hidden=how)
        assert not leaf.grad[hidden_N].any()
        assert (leaf.grad[~hidden_N].abs().sum(-1) > 0).all()


def qwen(kind):
    source = tiny_model(kind)
    experts, router = {"charts": charts(), "maths": maths()}, image_router("maths", "charts", feature="mean", width=32)
    return with_experts({"only": source}, {"only": ["image", "video"]}, experts, router, mask_token=True)[0]


def qwen_batch(model, side):
    """Two rows with an image on its grid, one with text alone."""
    media = {k: v for k, v in tiny_inputs(model, tiny_model(model)).items() if "pixel_values" in k or "grid" in k}
    count = 6
    rows = [
        [1, *[IMAGE] * count, *block("maths", 4), 5, 6, 7],
        [2, 3, *[IMAGE] * count, *block("charts", 6), 8, 9],
        [4, 10],
    ]
    ids, padding = placeholder_rows(20, *rows, side=side)
    mask = padding.clone()
    for row, places in enumerate([[2, 5], [3, 4, 7], []]):
        start = 20 - len(rows[row]) if side == "left" else 0
        for place in places:
            assert ids[row, start + place] == IMAGE
            mask[row, start + place] = 0
    grid = media["image_grid_thw"].repeat(2, 1)
    patches_2 = torch.cat([media["pixel_values"], media["pixel_values"].flip(0)])
    given = {"input_ids": ids, "attention_mask": mask, "padding_mask": padding}
    labels = torch.where((ids < 100) & (padding == 1), ids, -100)
    inputs = {"only__pixel_values": patches_2, "only__image_grid_thw": grid}
    return given, labels, {**inputs, **named("maths", squares(1)), **named("charts", patches(1))}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_grids_and_later_layers_stand_where_they_stood(kind, side):
    """M-RoPE positions of what is kept are those with nothing hidden, and deepstack features are hidden with theirs."""
    model = qwen(kind)
    given, labels, media = qwen_batch(kind, side)
    positions = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    whole = {**given, "attention_mask": given["padding_mask"]}
    with torch.no_grad():
        model(**whole, **media)
        outs = {how: model(**given, **media, labels=labels, hidden=how) for how in ("mask", "drop", "learned")}
    handle.remove()
    real = given["padding_mask"] == 1
    assert torch.equal(positions[1][:, real], positions[0][:, real])
    assert torch.equal(positions[3][:, real], positions[0][:, real])
    places = outs["drop"].kept_places
    for row, kept in enumerate(places):
        assert torch.equal(positions[2][:, row, kept >= 0], positions[0][:, row, kept[kept >= 0]])
    torch.testing.assert_close(
        kept_logits(outs["drop"], given, "drop"), kept_logits(outs["mask"], given, "mask"), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(outs["drop"].loss, outs["mask"].loss, rtol=1e-5, atol=1e-6)
    features = model.model.encode_media(model.model.media_inputs(media))
    made = features["image"]
    hidden_N = (given["attention_mask"] == 0)[given["input_ids"] == IMAGE]
    with torch.no_grad():
        made.x_ND = made.x_ND.masked_fill(hidden_N[:, None], 7.0)
        made.deepstack = [x.masked_fill(hidden_N[:, None], 9.0) for x in made.deepstack]
        assert bool(made.deepstack) == (kind == "qwen3_vl")
        for how, out in outs.items():
            again = model(**given, **media, mm_features=features, hidden=how)
            assert torch.equal(kept_logits(again, given, how), kept_logits(out, given, how)), how


@torch.no_grad()
def test_generating_on_a_grid_with_slots():
    model = qwen("qwen2_5_vl")
    given, _, media = qwen_batch("qwen2_5_vl", "left")
    asked = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    rows = [[1, *[IMAGE] * 6, 1012, 5, 6, 7], [2, 3, *[IMAGE] * 6, 1012, 8, 9], [4, 10]]
    ids, mask = placeholder_rows(11, *rows, side="left")
    media = {**media, **named("maths", squares(2)), **named("charts", patches(2))}
    made = model.generate(ids, attention_mask=mask, **media, **asked, experts=["maths", "charts"])
    one = {**media, **named("maths", squares(2)), **named("charts", patches(2))}
    one["maths__pixel_values"] = one["maths__pixel_values"][:1]
    one["charts__flattened_patches"] = one["charts__flattened_patches"][1:]
    one["charts__attention_mask"] = one["charts__attention_mask"][1:]
    full, full_mask = given["input_ids"], given["padding_mask"]
    wanted = model.generate(full, attention_mask=full_mask, **one, **asked)
    assert torch.equal(made[:, 11:], wanted[:, 20:])
    logits = model(input_ids=full, attention_mask=full_mask, **one).logits[:, -1]
    assert torch.equal(logits.argmax(-1), wanted[:, 20])


@torch.no_grad()
def test_images_that_see_both_ways_have_holes_too():
    source = tiny_model("gemma3")
    model = compose(source, {"only": source}, {"only": ["image"]}, {"image": IMAGE})
    rows = [[1, *IM, 5, 6], [2, 3, *IM, 7]]
    ids, padding = placeholder_rows(8, *rows, side="left")
    mask = padding.clone()
    mask[0, 3], mask[1, 4], mask[1, 5] = 0, 0, 0
    given = {"input_ids": ids, "attention_mask": mask, "padding_mask": padding}
    media = {"only__pixel_values": noise(2, 3, 56, 56)}
    features = model.model.encode_media(model.model.media_inputs(media))
    hidden_N = (mask == 0)[ids == IMAGE]
    features["image"].x_ND = features["image"].x_ND.masked_fill(hidden_N[:, None], 7.0)
    outs = {how: model(**given, **media, hidden=how) for how in ("mask", "drop")}
    for how, out in outs.items():
        again = model(**given, **media, mm_features=features, hidden=how)
        assert torch.equal(kept_logits(again, given, how), kept_logits(out, given, how))
    torch.testing.assert_close(
        kept_logits(outs["drop"], given, "drop"), kept_logits(outs["mask"], given, "mask"), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_what_cannot_be_right_is_refused(models):
    model = models("sdpa")
    given, labels, media = batch("left")
    with pytest.raises(ValueError, match="known: mask, drop, learned"):
        model(**given, **media, hidden="zero")
    with pytest.raises(ValueError, match="needs a 2-D attention_mask"):
        model(**{**given, "attention_mask": None}, **media, hidden="mask")
    with pytest.raises(ValueError, match="pass padding_mask"):
        model(**{**given, "padding_mask": None}, **media, hidden="learned")
    after = labels.clone()
    row, place = (given["attention_mask"] == 0).logical_and(given["padding_mask"] == 1).nonzero()[0].tolist()
    after[row, place + 1] = 5
    for how in ("mask", "drop"):
        with pytest.raises(ValueError, match="1 labels come right after a hidden token"):
            model(**given, **media, labels=after, hidden=how)
    plain = two()[0]
    with pytest.raises(ValueError, match="no mask_token"):
        plain(**given, **media, hidden="learned")
    grid = qwen("qwen2_vl")
    given, _, media = qwen_batch("qwen2_vl", "left")
    with pytest.raises(ValueError, match="pass padding_mask"):
        grid(**{**given, "padding_mask": None}, **media, hidden="mask")


@torch.no_grad()
def test_layers_with_a_window_cannot_drop():
    source = tiny_model("mistral3")
    model = compose(source, {"only": source}, {"only": ["image"]}, {"image": IMAGE})
    ids = torch.arange(1, 31)[None]
    mask = torch.ones_like(ids)
    mask[0, 5] = 0
    model.config.text_config.sliding_window = 16
    with pytest.raises(ValueError, match="by their distance in the row"):
        model(input_ids=ids, attention_mask=mask, hidden="drop")
    model.config.text_config.sliding_window = None
    model(input_ids=ids, attention_mask=mask, hidden="drop")
