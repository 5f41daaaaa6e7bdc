"""Settings of single tensors, against values worked out by hand and a slow reference that spells out every layer."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcompose.errors import RecipeError
from mcompose.recipe import MergeSpec, Setting, count_layers, drop_whole_slice, find_slice, settings_for

NAMES = ("a", "b")


def ask(merge, *, part="language", layer=0, num_layers=4, name=None, sources=NAMES):
    name = name or (f"layers.{layer}.mlp.up_proj.weight" if layer is not None else "norm.weight")
    return settings_for(merge, sources=sources, part=part, layer=layer, num_layers=num_layers, name=name)


def spec(**fields):
    return MergeSpec.model_validate({"method": "linear", **fields})


def test_nothing_said_is_nothing_given():
    assert ask(spec()) == Setting("linear", None, {})


def test_weights_follow_the_order_asked_for_not_the_recipes():
    assert ask(spec(weights={"b": 0.2, "a": 0.8})).weights == (0.8, 0.2)
    assert ask(spec(weights={"b": 0.2, "a": 0.8}), sources=("b",)).weights == (0.2,)


def test_per_source_parameters_are_tuples_in_source_order():
    merge = spec(parameters={"density": {"b": 0.2, "a": 0.8}, "lambda": 2})
    assert ask(merge).parameters == {"density": (0.8, 0.2), "lambda": 2}


@pytest.mark.parametrize(("layer", "weight"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (None, 0.0)])
def test_a_gradient_runs_over_all_layers_and_starts_outside_them(layer, weight):
    merge = spec(weights={"a": [0, 1], "b": [0.0, 0.5, 1.0]})
    assert ask(merge, layer=layer).weights == pytest.approx((weight, weight))


def test_a_single_layer_takes_the_end_of_a_gradient():
    assert ask(spec(weights={"a": [0, 1], "b": 0}), num_layers=1).weights == (1, 0)


def test_words_and_switches_step():
    merge = spec(parameters={"normalize": [True, False], "rescale": ["none", "paper", "mergekit"]})
    assert [ask(merge, layer=layer).parameters["normalize"] for layer in range(4)] == [True, True, True, False]
    assert [ask(merge, layer=layer).parameters["rescale"] for layer in range(4)] == [
        "none",
        "none",
        "paper",
        "mergekit",
    ]


def test_the_later_override_wins_and_leaves_the_rest():
    merge = spec(
        method="ties",
        weights={"a": 1, "b": 1},
        parameters={"density": 0.5, "lambda": 1.0},
        overrides=[
            {"match": {"part": "language", "layers": [0, 2]}, "parameters": {"density": 0.2}},
            {"match": {"key": "*.mlp.*"}, "weights": {"a": 3, "b": 4}, "parameters": {"density": 0.1}},
            {"match": {"part": "head"}, "method": "linear"},
        ],
    )
    assert ask(merge, layer=1, name="layers.1.self_attn.q_proj.weight") == Setting(
        "ties", (1, 1), {"density": 0.2, "lambda": 1.0}
    )
    assert ask(merge, layer=1) == Setting("ties", (3, 4), {"density": 0.1, "lambda": 1.0})
    assert ask(merge, layer=3, name="layers.3.self_attn.q_proj.weight").parameters["density"] == 0.5
    # Another method starts from its own defaults; the weights stay.
    assert ask(merge, part="head", layer=None, name="lm_head.weight") == Setting("linear", (1, 1), {})


def test_both_ends_of_layers_are_included_and_gradients_run_between_them():
    merge = spec(
        weights={"a": 9, "b": 9},
        overrides=[{"match": {"layers": [2, 6]}, "weights": {"a": [0, 1], "b": [1, 0]}}],
    )
    got = [ask(merge, layer=layer, num_layers=9).weights for layer in range(9)]
    assert got == [(9, 9), (9, 9), (0, 1), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1, 0), (9, 9), (9, 9)]


def test_an_override_for_layers_that_do_not_exist_is_an_error():
    merge = spec(overrides=[{"match": {"layers": [2, 4]}, "method": "karcher"}])
    with pytest.raises(
        RecipeError, match=r"overrides\[0\].match.layers' names layer 4, but there are only 4 layers"
    ) as caught:
        ask(merge, layer=0, num_layers=4)
    assert caught.value.hint == "Layers run from 0 to 3."


def test_filters_are_looked_for_in_the_files_spelling_and_fall_through():
    merge = spec(
        weights={"a": [{"filter": "model.layers.1.", "value": 0.1}, {"filter": "*", "value": [0, 1]}], "b": 2},
        parameters={"t": [{"filter": "self_attn", "value": 0.5}]},
    )
    assert ask(merge, layer=1).weights == (0.1, 2)
    assert ask(merge, layer=3).weights == (1, 2)
    assert ask(merge, layer=3).parameters == {}
    assert ask(merge, layer=3, name="layers.3.self_attn.k_proj.weight").parameters == {"t": 0.5}


def test_a_weight_that_no_filter_gives_is_an_error():
    merge = spec(weights={"a": [{"filter": "attn", "value": 1}], "b": 1})
    with pytest.raises(RecipeError, match=r"does not have a weight of 'a' for 'model.layers.0.mlp"):
        ask(merge)
    merge = spec(parameters={"density": {"a": [{"filter": "attn", "value": 1}], "b": 1}})
    with pytest.raises(RecipeError, match="for only some sources"):
        ask(merge)


def test_weight_mix_reads_weights_as_shares():
    merge = spec(method="weight-mix", weights={"a": [1, 0], "b": [0, 1]})
    assert ask(merge, layer=1) == Setting("weight-mix", None, {"beta": pytest.approx(2 / 3)})
    with pytest.raises(RecipeError, match=r"add up to 1\.5"):
        ask(spec(method="weight-mix", weights={"a": 1, "b": 0.5}))


SLICED = {
    "method": "linear",
    "parameters": {"scale": 7},
    "slices": [
        {
            "sources": [{"source": "a", "layer_range": [0, 3]}, {"source": "b", "layer_range": [1, 4]}],
            "weights": {"a": [0, 1], "b": 1},
        },
        {"sources": [{"source": "b", "layer_range": [2, 4]}], "weights": {"b": 5}, "parameters": {"scale": 8}},
    ],
}


def test_slices_say_where_layers_come_from():
    merge = MergeSpec.model_validate(SLICED)
    assert count_layers(merge) == 5
    assert [find_slice(merge, part="language", layer=layer).layers for layer in range(5)] == [
        {"a": 0, "b": 1},
        {"a": 1, "b": 2},
        {"a": 2, "b": 3},
        {"b": 2},
        {"b": 3},
    ]
    assert find_slice(merge, part="embedding", layer=None).index == 0
    assert find_slice(merge, part="head", layer=None).index == 1
    with pytest.raises(RecipeError, match="have 5 layers, so layer 5 does not exist"):
        find_slice(merge, part="language", layer=5)


def test_gradients_run_inside_a_slice():
    merge = MergeSpec.model_validate(SLICED)
    assert [ask(merge, layer=layer, num_layers=5).weights for layer in range(3)] == [(0, 1), (0.5, 1), (1, 1)]
    last = ask(merge, layer=3, num_layers=5, sources=("b",))
    assert last == Setting("linear", (5,), {"scale": 8})


def test_one_slice_over_everything_is_a_plain_merge():
    only = {**SLICED, "slices": SLICED["slices"][:1]}
    only["slices"][0]["sources"][1]["layer_range"] = [0, 3]
    merge = MergeSpec.model_validate(only)
    assert drop_whole_slice(merge, num_layers=4) is merge
    plain = drop_whole_slice(merge, num_layers=3)
    assert plain.slices is None
    for layer in range(3):
        assert ask(plain, layer=layer, num_layers=3) == ask(merge, layer=layer, num_layers=3)


# --- a slow, obvious reference -------------------------------------------------------------------------------------

numbers = st.integers(-4, 4).map(float)
values = st.one_of(
    numbers,
    st.lists(numbers, min_size=1, max_size=4),
    st.tuples(st.sampled_from(["attn", "mlp", "layers.1.", "model.norm"]), numbers).map(
        lambda pair: [{"filter": pair[0], "value": pair[1]}, {"value": [0.0, 8.0]}]
    ),
)
matches = st.fixed_dictionaries(
    {},
    optional={
        "part": st.sampled_from(["language", "embedding", "head"]),
        "layers": st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted).map(list),
        "key": st.sampled_from(["*attn*", "layers.[12].*", "*weight", "norm*", "lm_head.weight"]),
    },
).filter(bool)
overrides = st.builds(
    lambda match, weights, parameters, method: {
        "match": match,
        "parameters": parameters,
        **({"weights": weights} if weights else {}),
        **({"method": method} if method else {}),
    },
    matches,
    st.none() | st.fixed_dictionaries({"a": values, "b": values}),
    st.fixed_dictionaries({"density": values}, optional={"lambda": values}),
    st.none() | st.sampled_from(["linear", "ties"]),
)
merges = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["linear", "ties"]),
        "weights": st.fixed_dictionaries({"a": values, "b": values}),
        "parameters": st.fixed_dictionaries(
            {}, optional={"density": st.fixed_dictionaries({"a": values, "b": values}), "lambda": values}
        ),
        "overrides": st.lists(overrides, max_size=3),
    }
)
TENSORS = [
    ("embedding", None, "embed_tokens.weight"),
    *(("language", layer, f"layers.{layer}.self_attn.q_proj.weight") for layer in range(5)),
    *(("language", layer, f"layers.{layer}.mlp.up_proj.weight") for layer in range(5)),
    ("language", None, "norm.weight"),
    ("head", None, "lm_head.weight"),
]


def slow_number(raw, layers, layer, full_name):
    """A value written out for every layer of a range, then looked up."""
    if isinstance(raw, dict):
        return tuple(slow_number(raw[name], layers, layer, full_name) for name in NAMES)
    if not isinstance(raw, list):
        return raw
    if isinstance(raw[0], dict):
        first = next(item for item in raw if item.get("filter", "") in full_name)
        return slow_number(first["value"], layers, layer, full_name)
    if layer is None:
        return raw[0]
    if len(layers) == 1 or len(raw) == 1:
        return raw[-1]
    table = {}
    for number, each in enumerate(layers):
        place = number * (len(raw) - 1) / (len(layers) - 1)
        below = min(int(place), len(raw) - 2)
        table[each] = raw[below] + (raw[below + 1] - raw[below]) * (place - below)
    return table[layer]


def slow_settings(merge, part, layer, name):
    everywhere = list(range(5))
    full_name = name if part == "head" else "model." + name
    method, weights, parameters = merge["method"], (merge["weights"], everywhere), {}
    for key, value in merge["parameters"].items():
        parameters[key] = (value, everywhere)
    for override in merge["overrides"]:
        match = override["match"]
        layers = list(range(match["layers"][0], match["layers"][1] + 1)) if "layers" in match else everywhere
        if match.get("part", part) != part or ("layers" in match and layer not in layers):
            continue
        if "key" in match and not fnmatch.fnmatchcase(name, match["key"]):
            continue
        if "method" in override and override["method"] != method:
            method, parameters = override["method"], {}
        if "weights" in override:
            weights = (override["weights"], layers)
        for key, value in override["parameters"].items():
            parameters[key] = (value, layers)
    return (
        method,
        slow_number(weights[0], weights[1], layer, full_name),
        {key: slow_number(value, layers, layer, full_name) for key, (value, layers) in parameters.items()},
    )


@given(merges, st.sampled_from(TENSORS))
def test_settings_agree_with_the_slow_reference(raw, tensor):
    part, layer, name = tensor
    got = settings_for(MergeSpec.model_validate(raw), sources=NAMES, part=part, layer=layer, num_layers=5, name=name)
    method, weights, parameters = slow_settings(raw, part, layer, name)
    assert got.method == method
    assert got.weights == pytest.approx(weights)
    assert got.parameters.keys() == parameters.keys()
    for key, value in parameters.items():
        assert got.parameters[key] == pytest.approx(value)
