"""What experts read and give: against the native encoders' own outputs and projectors written out by hand."""

import pytest
import torch
from expert_models import (
    CHARTS,
    IMAGE,
    MATHS,
    block,
    charts,
    maths,
    named,
    noise,
    patches,
    pixels,
    project,
    speech,
    squares,
    two,
    with_experts,
)
from tiny_models import fill, tiny_model

from mcompose.modeling.experts.expert import Expert, initial_values

IM = [IMAGE] * 4


def lone(entry, seed=5):
    made = Expert("one", entry, text_width=32, attn_implementation=None)
    fill(made, seed)
    return made.eval()


@pytest.fixture(scope="module")
def pair():
    return two()


@torch.no_grad()
def test_the_class_token_is_left_out(pair):
    model, encoders = pair
    x = encoders["maths"](**squares(2)).last_hidden_state
    assert x.shape == (2, 5, 16)
    made = model.model.experts["maths"](squares(2))
    torch.testing.assert_close(made.x_ND, project(model.model.experts["maths"], x[:, 1:]).reshape(8, 32))
    assert made.counts == [4, 4]


@torch.no_grad()
def test_padding_can_be_kept_hidden_or_dropped(pair):
    _, encoders = pair
    inputs = patches(2, real=[4, 6])
    x = encoders["charts"](**inputs).last_hidden_state
    for padding in ("keep", "mask", "drop"):
        tokens = "attention_mask" if padding == "drop" else 6
        expert = lone(charts(padding=padding, tokens=tokens))
        expert.encoder.load_state_dict(encoders["charts"].state_dict())
        wanted = project(expert, x)
        made = expert(inputs)
        if padding == "drop":
            torch.testing.assert_close(made.x_ND, torch.cat([wanted[0, :4], wanted[1]]))
            assert made.counts == [4, 6]
        else:
            torch.testing.assert_close(made.x_ND, wanted.reshape(12, 32))
            assert made.counts == [6, 6]
        assert (made.valid_N is not None) == (padding == "mask")
    assert lone(charts(padding="mask"))(inputs).valid_N.tolist() == [True] * 4 + [False] * 2 + [True] * 6


@torch.no_grad()
def test_an_earlier_hidden_state_is_read(pair):
    _, encoders = pair
    expert = lone(maths(layer=-2))
    expert.encoder.load_state_dict(encoders["maths"].state_dict())
    states = encoders["maths"](**squares(1), output_hidden_states=True).hidden_states
    torch.testing.assert_close(expert(squares(1)).x_ND, project(expert, states[1][:, 1:])[0])


@torch.no_grad()
def test_row_numbers_survive_half_precision():
    """bfloat16 holds no 257, and patches of a thin page are numbered by row."""
    inputs = patches(1)
    inputs["flattened_patches"][0, :, 0] = torch.tensor([1.0, 2, 256, 257, 258, 259])
    expert = lone(charts()).to(torch.bfloat16)
    near = {**inputs, "flattened_patches": inputs["flattened_patches"].clone()}
    near["flattened_patches"][0, 3, 0] = 256
    assert not torch.equal(expert(inputs).x_ND, expert(near).x_ND)
    seen = []
    expert.encoder.embeddings.row_embedder.register_forward_pre_hook(lambda m, args: seen.append(args[0].tolist()))
    expert(inputs)
    assert seen == [[[1, 2, 256, 257, 258, 259]]]


@torch.no_grad()
def test_projectors_against_plain_arithmetic():
    x = noise(2, 16, 16, seed=9)
    linear = lone(maths(projector={"kind": "linear"})).projector
    torch.testing.assert_close(linear(x), x @ linear.weight.T + linear.bias)
    shuffle = lone(maths(projector={"kind": "pixel_shuffle", "factor": 2}))
    grid = x.reshape(2, 4, 4, 16)
    folded = torch.stack(
        [
            torch.cat([grid[:, 2 * r, 2 * c], grid[:, 2 * r, 2 * c + 1], grid[:, 2 * r + 1, 2 * c],
                       grid[:, 2 * r + 1, 2 * c + 1]], dim=-1)
            for r in range(2) for c in range(2)
        ],
        dim=1,
    )  # fmt: skip
    torch.testing.assert_close(shuffle.projector(x), project(shuffle, folded))
    with pytest.raises(ValueError, match=r"15 vectors are no grid .*'factor' must divide .*'class_token'"):
        shuffle.projector(x[:, :15])
    with pytest.raises(ValueError, match="7 heads do not divide 32"):
        lone(maths(projector={"kind": "resampler", "queries": 3, "heads": 7}))
    deep = lone(maths(projector={"kind": "mlp", "depth": 3})).projector
    by_hand = deep.layers[2](
        torch.nn.functional.gelu(deep.layers[1](torch.nn.functional.gelu(deep.layers[0](deep.norm(x)))))
    )
    torch.testing.assert_close(deep(x), by_hand)


@torch.no_grad()
def test_the_resampler_is_one_attention_that_does_not_read_padding():
    p = lone(charts(projector={"kind": "resampler", "queries": 3, "heads": 2}, tokens=3, padding="mask")).projector
    x, mask = noise(1, 6, 24, seed=9), torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()
    y = p.norm(x)[0, :4]
    heads = []
    for h in (slice(0, 16), slice(16, 32)):
        score = p.queries[:, h] @ p.key(y)[:, h].T / 4
        heads.append(score.softmax(-1) @ p.value(y)[:, h])
    torch.testing.assert_close(p(x, mask)[0], p.out(torch.cat(heads, dim=-1)))


@torch.no_grad()
def test_a_number_of_vectors_that_the_config_does_not_say_is_refused():
    with pytest.raises(ValueError, match="'one' made 5 vectors of an item, and its configuration says 4"):
        lone(maths(skip=0))(squares(1))
    with pytest.raises(ValueError, match="needs one__pixel_values"):
        lone(maths())({"image": noise(1, 3)})


@torch.no_grad()
def test_features_and_tokens_that_do_not_match_are_refused(pair):
    model, _ = pair
    ids = torch.tensor([[1, *IM, *block("maths", 3), 5]])
    with pytest.raises(ValueError, match="3 maths expert placeholder tokens and 4 maths expert features"):
        model(input_ids=ids, **pixels(1), **named("maths", squares(1)))
    ids = torch.tensor([[1, *IM, *block("charts", 6), *block("charts", 6), 5]])
    with pytest.raises(ValueError, match="12 charts expert placeholder tokens and 6"):
        model(input_ids=ids, **pixels(1), **named("charts", patches(1)))
    with pytest.raises(ValueError, match="12 charts expert placeholder tokens and no charts expert came"):
        model(input_ids=ids, **pixels(1))


@torch.no_grad()
def test_every_vector_lands_on_its_own_token(pair):
    """The language model's input, put together item by item."""
    model, _ = pair
    core = model.model
    row = [1, *IM, *block("charts", 6), 7, *IM, *block("maths", 4), 8, *IM, 9, *IM, *block("maths", 4), 3]
    given = {**pixels(4), **named("charts", patches(1)), **named("maths", squares(2))}
    seen = []
    handle = core.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits = model(input_ids=torch.tensor([row]), **given).logits
    handle.remove()
    vectors = {
        IMAGE: list(core.get_image_features(given["sees__pixel_values"]).pooler_output),
        CHARTS: list(core.experts["charts"](patches(1)).x_ND),
        MATHS: list(core.experts["maths"](squares(2)).x_ND),
        1010: [core.domain_tokens[0]] * 3,
        1011: [core.domain_tokens[1]] * 3,
    }
    table = model.get_input_embeddings().weight
    x_LD = torch.stack([vectors[index].pop(0) if index in vectors else table[index] for index in row])
    assert not any(vectors.values())
    assert torch.equal(seen[0][0], x_LD)
    wanted = model.lm_head(core.language_model(inputs_embeds=x_LD[None]).last_hidden_state)
    assert torch.equal(logits, wanted)


@torch.no_grad()
def test_padding_out_of_sight_changes_no_logit(pair):
    """With padding "mask" the padded rows' vectors do not matter; with "keep" they do."""
    for padding, same in (("mask", True), ("keep", False)):
        model, _ = two(charts={"padding": padding})
        ids = torch.tensor([[1, *IM, *block("charts", 6), 5, 6]])
        given = {**pixels(1), **named("charts", patches(1, real=[4]))}
        logits = model(input_ids=ids, **given).logits
        made = model.model.experts["charts"](patches(1, real=[4]))
        made.x_ND[4:] += 10.0
        again = model(input_ids=ids, **pixels(1), expert_features={"charts": made}).logits
        seen = torch.ones(15, dtype=torch.bool)
        seen[10:12] = False
        seen = seen[: ids.shape[1]]
        assert torch.equal(again[0, seen], logits[0, seen]) is same


def test_experts_never_train(pair):
    model, _ = two()
    model.train()
    assert model.model.experts["maths"].projector.training
    for expert in model.model.experts.values():
        assert not any(module.training for module in expert.encoder.modules())
        assert not any(p.requires_grad for p in expert.encoder.parameters())
    ids = torch.tensor([[1, *IM, *block("maths", 4), 5, 6]])
    labels = torch.where(ids < 100, ids, -100)
    model(input_ids=ids, labels=labels, **pixels(1), **named("maths", squares(1))).loss.backward()
    for name, p in model.model.experts["maths"].named_parameters():
        assert (p.grad is None) == name.startswith("encoder."), name
    assert model.model.domain_tokens.grad.abs().sum() > 0


@torch.no_grad()
def test_sounds_have_experts_too():
    natives = {"sees": tiny_model("llava"), "hears": tiny_model("voxtral")}
    model, encoders = with_experts(natives, {"sees": ["image"], "hears": ["audio"]}, {"speech": speech()})
    sound = noise(1, 8, 20, seed=4)
    x = encoders["speech"](sound).last_hidden_state
    made = model.model.experts["speech"]({"input_features": sound}).x_ND
    torch.testing.assert_close(made, project(model.model.experts["speech"], x)[0])


def test_first_values_depend_on_seed_and_name_alone(pair):
    config = pair[0].config
    one, again, other = (initial_values(config, seed=seed) for seed in (1, 1, 2))
    state = pair[0].state_dict()
    wanted = {n for n in state if ".projector." in n or n.startswith("model.routers.")}
    assert set(one) == wanted
    assert all(state[name].shape == value.shape for name, value in one.items())
    assert all(torch.equal(one[name], again[name]) for name in one)
    key = "model.experts.maths.projector.layers.0.weight"
    assert not torch.equal(one[key], other[key])
    assert one["model.experts.maths.projector.norm.weight"].eq(1).all()
    assert abs(float(one[key].std()) - (3 * 16) ** -0.5) < 0.03
