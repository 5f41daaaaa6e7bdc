"""The searched recipe: values put where they belong, every comment kept, and nothing else changed."""

from pathlib import Path

import pytest

from mcompose.errors import OutputError
from mcompose.pipeline.search.recipe_text import MARK, check_target, searched_path, searched_text
from mcompose.pipeline.search.space import Settings, applied
from mcompose.recipe import load_recipe, parse_recipe

HEAD = """\
# What two assistants can do.
schema: 1
name: pair   # of hands
base: local:base
sources:
  - {name: sees, model: 'local:sees', modalities: [image]}   # eyes
  - name: hears
    model: local:hears
"""
WEIGHTS = Settings({"sees": 0.3, "hears": 0.7})


def filled(folder: Path, text: str, settings: Settings = WEIGHTS, file: str = "recipe.yaml") -> str:
    path = folder / file
    path.write_text(text)
    loaded = load_recipe(path)
    made = searched_text(loaded, settings)
    found, wanted = parse_recipe(made, path=path).recipe, applied(loaded, settings).recipe
    assert found.merge == wanted.merge
    assert (found.sources, found.base, found.compose, found.align) == (
        wanted.sources, wanted.base, wanted.compose, wanted.align,
    )  # fmt: skip
    assert found.name == wanted.name + "-searched"
    return made


CASES = {
    "nothing said": (
        "merge:\n  method: linear  # an average\n  dtype: float32\n",
        "merge:\n  method: linear  # an average\n  weights: {sees: 0.3, hears: 0.7}\n  dtype: float32\n",
    ),
    "no newline at the end": (
        "merge:\n  method: linear",
        "merge:\n  method: linear\n  weights: {sees: 0.3, hears: 0.7}",
    ),
    "a line each": (
        "merge:\n  method: linear\n  weights:\n    sees: 0.5   # less\n    # of the other\n    hears: 0.5 # more\n",
        "merge:\n  method: linear\n  weights:\n    sees: 0.3   # less\n    # of the other\n    hears: 0.7 # more\n",
    ),
    "in braces": (
        "merge: {method: linear, weights: {sees: 0.5, hears: 0.5}}  # all\n",
        "merge: {method: linear, weights: {sees: 0.3, hears: 0.7}}  # all\n",
    ),
    "in braces, nothing said": (
        "merge: {method: linear}\n",
        "merge: {weights: {sees: 0.3, hears: 0.7}, method: linear}\n",
    ),
    "a gradient on lines": (
        "merge:\n  method: linear\n  weights:\n    sees:\n      - 0.1\n      - 0.9  # top\n    hears: [0.9, 0.1]\n",
        "merge:\n  method: linear\n  weights:\n    sees:\n      0.3  # top\n    hears: 0.7\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_put_in_place_and_comments_stay(tmp_path, case):
    before, after = CASES[case]
    made = filled(tmp_path, HEAD + before)
    assert made == HEAD.replace("name: pair ", "name: pair-searched ") + after


def test_gradients_parameters_and_the_output_are_put_in_place(tmp_path):
    text = HEAD + (
        "output:\n  dir: build/pair/ # here\nmerge:\n  method: ties\n"
        "  parameters:\n    density: {sees: 0.5, hears: 0.2}  # kept\n    # the end\n"
    )
    settings = Settings({"sees": (0.1, 1e-05), "hears": (1.0, 0.5)}, {"density": 0.25, "lambda": 0.9})
    made = filled(tmp_path, text, settings)
    assert made == HEAD.replace("name: pair ", "name: pair-searched ") + (
        "output:\n  dir: build/pair-searched # here\nmerge:\n  method: ties\n"
        "  weights: {sees: [0.1, 1e-05], hears: [1.0, 0.5]}\n"
        "  parameters:\n    density: 0.25  # kept\n    lambda: 0.9\n    # the end\n"
    )


def test_parameters_that_nobody_wrote_are_added(tmp_path):
    made = filled(tmp_path, HEAD + "merge:\n  method: ties\n", Settings(None, {"density": 0.25, "normalize": False}))
    assert made.endswith("merge:\n  method: ties\n  parameters: {normalize: false, density: 0.25}\n")


def test_an_anchor_that_others_use_is_not_changed_under_them(tmp_path):
    text = HEAD + (
        "merge:\n  method: linear\n  weights: &w {sees: 0.5, hears: 0.5}\n"
        "  overrides:\n    - {match: {layers: [0, 1]}, weights: *w}\n"
    )
    made = filled(tmp_path, text)
    assert made.startswith("# Written anew")
    (override,) = parse_recipe(made, path=tmp_path / "recipe.yaml").recipe.merge.overrides
    assert override.weights == {"sees": 0.5, "hears": 0.5}


def test_a_merge_key_is_written_out(tmp_path):
    text = HEAD + "merge:\n  <<: {method: linear, seed: 3}\n  dtype: float32\n"
    assert filled(tmp_path, text).startswith("# Written anew")


def test_a_mergekit_file_becomes_a_recipe(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    models = "".join(f"  - {{model: {name}, parameters: {{weight: 1.0}}}}\n" for name in "ab")
    text = f"merge_method: linear\nmodels:\n{models}dtype: float32\n"
    made = filled(tmp_path, text, Settings({"a": 0.3, "b": 0.7}), file="kit.yml")
    assert made.startswith("# Written anew")
    assert "weights:\n    a: 0.3\n    b: 0.7\n" in made


def test_it_lies_beside_the_recipe_and_only_replaces_its_own_kind(tmp_path):
    recipe = tmp_path / "recipe.yml"
    target = searched_path(recipe)
    assert target == tmp_path / "recipe-searched.yaml"
    check_target(target)
    target.write_text(f"{MARK} in recipe.yml: ...\n")
    check_target(target)
    target.write_text("schema: 1\n")
    with pytest.raises(OutputError, match="is there already and is not of a search"):
        check_target(target)


def test_remarks_stand_above(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD + "merge: {method: linear}\n")
    made = searched_text(load_recipe(path), WEIGHTS, remarks=("Found by mcompose search: trial 3.", ""))
    assert made.startswith("# Found by mcompose search: trial 3.\n#\n# What two assistants can do.\nschema: 1\n")
