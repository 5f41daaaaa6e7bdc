"""Every recipe in ``recipes/`` loads, and so does what it resolves to."""

from pathlib import Path

import pytest

from mcompose.recipe import check_method, load_recipe, parse_recipe, resolve, resolve_text, settings_for

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {
        "llava-plus-expert-llm",
        "mergekit-slerp",
        "naivemc-vicuna",
        "ties",
        "weight-mix",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_says_what_it_is_and_how_to_run_it(path):
    header = path.read_text().split("\n\n")[0].split("schema:")[0]
    assert header.startswith("# ")
    assert "Memory:" in header
    assert "Command: mcompose " in header
    assert f"recipes/{path.name}" in header


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_and_resolves(path):
    loaded = load_recipe(path)
    assert loaded.raw == path.read_bytes()
    assert loaded.text == path.read_text()
    assert loaded.origin == ("mergekit" if path.stem.startswith("mergekit") else "mcompose")
    text = resolve_text(loaded.recipe, commits={})
    assert parse_recipe(text, path=path).recipe == resolve(loaded.recipe, commits={})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_tensor_of_a_7b_model_gets_settings(path):
    recipe = load_recipe(path).recipe
    names = recipe.source_names
    for layer in [None, *range(32)]:
        for part, name in (("language", f"layers.{layer}.mlp.up_proj.weight"), ("head", "lm_head.weight")):
            place = None if part == "head" else layer
            setting = settings_for(recipe.merge, sources=names, part=part, layer=place, num_layers=32, name=name)
            assert setting.weights is None or len(setting.weights) == len(names)


def test_the_slerp_runs_from_the_base_along_mergekits_gradient():
    recipe = load_recipe(FOLDER / "mergekit-slerp.yaml").recipe
    assert recipe.source_names == ("Mistral-7B-Instruct-v0-1", "Mistral-7B-OpenOrca")
    assert recipe.base is None
    assert recipe.output.dir is None

    def t(name, layer, part="language"):
        return settings_for(
            recipe.merge, sources=recipe.source_names, part=part, layer=layer, num_layers=32, name=name
        ).parameters["t"]

    assert t("layers.0.self_attn.q_proj.weight", 0) == 0
    assert t("layers.31.self_attn.q_proj.weight", 31) == 1
    assert t("layers.31.mlp.up_proj.weight", 31) == 0
    assert t("layers.31.input_layernorm.weight", 31) == 0.5
    # Layer 4 of 0..31 lies 16/31 of the way from the first value to the second.
    assert t("layers.4.self_attn.q_proj.weight", 4) == pytest.approx(0.5 * 16 / 31)
    assert t("embed_tokens.weight", None, "embedding") == 0.5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_method_can_be_run(path):
    from mcompose.methods import METHODS

    catalogue = {method.name: method for method in METHODS}
    loaded = load_recipe(path)
    check_method(loaded, catalogue)
    text = resolve_text(loaded.recipe, commits={}, catalogue=catalogue)
    again = parse_recipe(text, path=path)
    check_method(again, catalogue)
    assert again.recipe.merge.parameters.items() >= loaded.recipe.merge.parameters.items()
