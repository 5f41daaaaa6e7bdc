"""What a search varies: sticks that are broken by hand, round trips, and requests that make no sense."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sources import write_recipe

from mcompose.errors import RequestError
from mcompose.pipeline.search.request import SpaceRequest, defaults_of, make_space
from mcompose.pipeline.search.space import Axis, Settings, Space, applied
from mcompose.recipe import load_recipe

THREE = Space(("a", "b", "c"), "sum")
SOURCES = [{"name": "a", "model": "local:a"}, {"name": "b", "model": "local:b"}]


def recipe(folder: Path, **merge) -> Path:
    return write_recipe(folder / "recipe.yaml", base="local:base", sources=SOURCES, merge=merge)


def test_a_stick_is_broken_as_worked_out_by_hand():
    # With u = 3/4 and two sources after it, a takes 1 - (1/4)^(1/2) = 1/2; of the other half, b takes u = 1/2.
    weights = THREE.settings({"share:a": 0.75, "share:b": 0.5}).weights
    assert weights == {"a": 0.5, "b": 0.25, "c": 0.25}
    doubled = Space(("a", "b", "c"), "sum", total=2.0).settings({"share:a": 0.75, "share:b": 0.5}).weights
    assert doubled == {"a": 1.0, "b": 0.5, "c": 0.5}


def test_two_weights_are_the_share_and_the_rest():
    space = Space(("a", "b"), "sum")
    assert space.settings({"share:a": 0.123456}).weights == {"a": 0.1235, "b": 0.8765}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_weights_that_add_up_do_and_are_never_negative(shares):
    space = Space(tuple("abcde"), "sum")
    weights = space.settings({f"share:{name}": u for name, u in zip("abcd", shares, strict=True)}).weights
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-9)
    assert min(weights.values()) >= 0
    assert all(round(weight, 4) == pytest.approx(weight, abs=1e-9) for weight in weights.values())


def test_uniform_shares_give_uniform_weights():
    """On the simplex of three, the largest weight is above 1/2 in 3/4 of the area, and each mean is 1/3."""
    steps = [(k + 0.5) / 200 for k in range(200)]
    made = [THREE.settings({"share:a": u, "share:b": v}).weights for u in steps for v in steps]
    above = sum(max(w.values()) > 0.5 for w in made) / len(made)
    assert above == pytest.approx(0.75, abs=0.01)
    for name in "abc":
        assert sum(w[name] for w in made) / len(made) == pytest.approx(1 / 3, abs=0.005)


def test_a_gradient_has_weights_of_its_own_at_every_anchor():
    space = Space(("a", "b"), "sum", anchors=3)
    assert [axis.name for axis in space.axes] == ["share:a@0", "share:a@1", "share:a@2"]
    made = space.settings({"share:a@0": 0.2, "share:a@1": 0.5, "share:a@2": 1.0})
    assert made.weights == {"a": (0.2, 0.5, 1.0), "b": (0.8, 0.5, 0.0)}
    assert space.coordinates(made) == {"b@0": 0.8, "b@1": 0.5, "b@2": 0.0}
    assert Settings.from_json(made.to_json()) == made


def test_free_weights_keep_to_their_bounds_with_four_digits():
    space = Space(("a", "b"), "free", low=0.0, high=1 / 3)
    assert space.settings({"weight:a": 1 / 3, "weight:b": 0.123456}).weights == {"a": 0.3333, "b": 0.1235}
    assert space.settings({"weight:a": 0.0000123456, "weight:b": 0.0}).weights == {"a": 1.235e-05, "b": 0.0}


@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 1, "b": 0, "c": 0}, None])
def test_the_recipes_own_weights_are_found_in_the_space(tmp_path, weights):
    sources = [*SOURCES, {"name": "c", "model": "local:c"}]
    merge = {"method": "linear"} | ({"weights": weights} if weights else {})
    loaded = load_recipe(write_recipe(tmp_path / "r.yaml", sources=sources, merge=merge))
    values = THREE.values_of(loaded.recipe.merge, defaults_of(loaded))
    wanted = weights or dict.fromkeys("abc", 1 / 3)
    assert THREE.settings(values).weights == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("space", "merge"),
    [
        (Space(("a", "b"), "sum"), {"method": "linear", "weights": {"a": 1.0, "b": 0.5}}),
        (Space(("a", "b"), "sum"), {"method": "linear", "weights": {"a": 1.5, "b": -0.5}}),
        (Space(("a", "b"), "sum"), {"method": "linear", "weights": {"a": [0, 1], "b": [1, 0]}}),
        (Space(("a", "b"), "sum", anchors=2), {"method": "linear", "weights": {"a": [0, 1, 0], "b": [1, 0, 1]}}),
        (Space(("a", "b"), "free", high=0.4), {"method": "task_arithmetic"}),
        (Space(("a", "b"), "none", parameters=(Axis("parameter:density", 0.1, 0.9),)), {"method": "ties"}),
    ],
    ids=["another sum", "negative", "gradient", "another gradient", "above", "parameter"],
)
def test_own_settings_outside_the_space_are_not_forced_into_it(tmp_path, space, merge):
    loaded = load_recipe(recipe(tmp_path, **merge))
    assert space.values_of(loaded.recipe.merge, defaults_of(loaded)) is None


def test_settings_go_into_the_recipe_beside_what_is_not_searched(tmp_path):
    loaded = load_recipe(recipe(tmp_path, method="ties", parameters={"lambda": 0.7, "density": 0.5}))
    changed = applied(loaded, Settings({"a": 1.0, "b": (0.1, 0.2)}, {"density": 0.3})).recipe.merge
    assert changed.weights == {"a": 1.0, "b": (0.1, 0.2)}
    assert changed.parameters == {"lambda": 0.7, "density": 0.3}
    assert loaded.recipe.merge.weights is None


@pytest.mark.parametrize(
    ("method", "request_", "on_grid", "expected"),
    [
        ("naivemc", {}, False, ("sum", 0.0, 1.0, None)),
        ("naivemc", {"low": 0.2}, False, ("free", 0.2, 1.0, None)),
        ("naivemc", {}, True, ("sum", 0.0, 0.6, 0.1)),
        ("task_arithmetic", {}, False, ("free", 0.0, 1.0, None)),
        ("task_arithmetic", {"total": 1.0}, False, ("sum", 0.0, 1.0, None)),
        ("task_arithmetic", {"high": 0.5, "step": 0.25}, True, ("free", 0.0, 0.5, 0.25)),
        ("weight-mix", {}, False, ("sum", 0.0, 1.0, None)),
        ("slerp", {"parameters": ("t:0.1:0.9",)}, False, ("none", 0.0, 1.0, None)),
        ("ties", {"weights": False, "parameters": ("density:0.1:0.9",)}, False, ("none", 0.0, 1.0, None)),
    ],
)
def test_what_is_not_said_follows_from_the_method(tmp_path, method, request_, on_grid, expected):
    loaded = load_recipe(recipe(tmp_path, method=method, **({"parameters": {"t": 0.5}} if method == "slerp" else {})))
    space = make_space(loaded, SpaceRequest(**request_), on_grid=on_grid)
    assert (space.mode, space.low, space.high, space.step) == expected


def test_parameters_are_numbers_whole_numbers_or_words(tmp_path):
    loaded = load_recipe(recipe(tmp_path, method="ties"))
    texts = ("density:0.1:0.9", "rescale:none,mergekit", "normalize:true,false", "lambda:0.5:1.5:0.25")
    space = make_space(loaded, SpaceRequest(parameters=texts), on_grid=False)
    density, rescale, normalize, scale = space.parameters
    assert (density.kind, density.low, density.high, density.step) == ("float", 0.1, 0.9, None)
    assert (rescale.kind, rescale.choices) == ("word", ("none", "mergekit"))
    assert normalize.choices == (True, False)
    assert scale.values() == (0.5, 0.75, 1.0, 1.25, 1.5)


@pytest.mark.parametrize(
    ("merge", "request_", "on_grid", "message"),
    [
        ({"method": "slerp", "parameters": {"t": 0.5}}, {}, False, "'slerp' takes no weights, and no parameter"),
        ({"method": "slerp", "parameters": {"t": 0.5}}, {"parameters": ("t:0:1",), "low": 0}, False, "'--low' is for"),
        ({"method": "ties"}, {"weights": False}, False, "Nothing is left to search"),
        ({"method": "ties"}, {"parameters": ("densty:0:1",)}, False, "no parameter 'densty'.*Did you mean 'density'"),
        ({"method": "ties"}, {"parameters": ("density:0.5",)}, False, "is not a range"),
        ({"method": "ties"}, {"parameters": ("density:0.9:0.1",)}, False, "is not a range"),
        ({"method": "ties"}, {"parameters": ("density:a:b",)}, False, "is not a range"),
        ({"method": "ties"}, {"parameters": ("density:0:nan",)}, False, "is not a range"),
        ({"method": "ties"}, {"parameters": ("density:0:2",)}, False, "'density' must be 0 to 1"),
        ({"method": "ties"}, {"parameters": ("density:0:1", "density:0:0.5")}, False, "given twice"),
        ({"method": "ties"}, {"parameters": ("density:0:1",)}, True, "needs a step"),
        ({"method": "ties"}, {"parameters": ("rescale:none,no",)}, False, "cannot be 'no'"),
        ({"method": "ties"}, {"parameters": ("rescale:none,mergekit",)}, True, "words have no neighbours"),
        ({"method": "naivemc"}, {"total": 1.0, "high": 0.5}, False, "take no bounds"),
        ({"method": "naivemc"}, {"total": 0.0}, False, "not a sum"),
        ({"method": "naivemc"}, {"low": 0.9, "high": 0.1}, False, "There is no weight between"),
        ({"method": "naivemc"}, {"step": 0.1}, False, "'--step' is for the grid"),
        ({"method": "naivemc"}, {"step": 0.7}, True, "'--step 0.7' does not fit"),
        ({"method": "naivemc"}, {"low": -0.3}, True, "start from 0"),
        ({"method": "naivemc"}, {"gradient": 2}, True, "'--gradient 2' cannot be searched"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(tmp_path, merge, request_, on_grid, message):
    loaded = load_recipe(recipe(tmp_path, **merge))
    with pytest.raises(RequestError) as caught:
        make_space(loaded, SpaceRequest(**request_), on_grid=on_grid)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_one_source_has_no_shares_but_a_delta_has_a_scale(tmp_path):
    one = SOURCES[:1]
    average = load_recipe(write_recipe(tmp_path / "r.yaml", sources=one, merge={"method": "linear"}))
    with pytest.raises(RequestError, match="has one source"):
        make_space(average, SpaceRequest(), on_grid=False)
    merge = {"method": "task_arithmetic"}
    delta = load_recipe(write_recipe(tmp_path / "d.yaml", base="local:base", sources=one, merge=merge))
    assert [axis.name for axis in make_space(delta, SpaceRequest(), on_grid=False).axes] == ["weight:a"]
