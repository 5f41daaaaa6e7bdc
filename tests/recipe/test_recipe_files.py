"""Files that are no recipe, and YAML that would do harm: each gives one sentence."""

import os
import textwrap

import pytest
from recipe_failures import GOOD, failure, write

from mcompose.errors import RecipeError
from mcompose.recipe import document, load_recipe

FILES = {
    b"": "the recipe is empty",
    b"# only a comment\n": "the recipe is empty",
    b"- a\n- b\n": "a recipe must be a mapping",
    b"just words": "a recipe must be a mapping",
    b"\x89PNG\r\n\x1a\n\x00": "is not UTF-8 text",
    b"schema: 1\nname: a\x00b": "character U+0000 is not allowed in YAML",
    "schema: 1".encode("utf-16"): "is not UTF-8 text",
    b"x" * (document.MAX_BYTES + 1): "a recipe may have at most",
    b"a: " + b"[" * 20_000: "nested too deeply",
    b"a: " + b"[" * 300 + b"]" * 300 + b"\nb: 1": "'a' is not a known key",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: repr(content[:12]))
def test_a_file_that_is_no_recipe(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in caught.value.message
    assert FILES[content] in caught.value.message


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 100 * 1000**2)
    with pytest.raises(RecipeError, match="100,000,000 bytes; a recipe may have at most"):
        load_recipe(path)


def test_a_missing_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(RecipeError, match="the file does not exist"):
        load_recipe(tmp_path / "nothing.yaml")
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match="this is a folder") as caught:
        load_recipe(tmp_path)
    assert caught.value.hint == "Name a file in it: recipe.yaml."
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="not an ordinary file"):
        load_recipe(tmp_path / "pipe")


def test_a_bomb_of_anchors_is_defused(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join(['*' + before] * 10)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    _, message, _ = failure(tmp_path, "\n".join(lines))
    assert "the anchors expand to more than 100,000 values" in message


def test_a_bomb_of_merge_keys_is_defused(tmp_path):
    lines = ["a: &a {k: 1}"]
    names = [f"n{number}" for number in range(40)]
    lines += [
        f"{name}: &{name} {{<<: [*{before}, *{before}]}}" for before, name in zip(["a", *names], names, strict=False)
    ]
    _, message, _ = failure(tmp_path, "\n".join(lines))
    assert "the anchors expand to more than 100,000 values" in message


def test_anchors_and_merge_keys_work(tmp_path):
    text = textwrap.dedent("""\
        schema: 1
        name: pair
        sources:
          - &first {name: sees, model: "hub:o/a", modalities: [image]}
          - {<<: *first, name: hears}
        merge:
          method: linear
          weights: &w {sees: 1e-1, hears: 0.5}
          overrides:
            - {match: {part: head}, weights: *w}
    """)
    recipe = load_recipe(write(tmp_path, text)).recipe
    assert [source.name for source in recipe.sources] == ["sees", "hears"]
    assert recipe.sources[0].model == recipe.sources[1].model
    assert recipe.merge.overrides[0].weights == recipe.merge.weights == {"sees": 0.1, "hears": 0.5}
