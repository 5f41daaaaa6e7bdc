"""A sound recipe, and what a broken one must say."""

import pytest

from mcompose.errors import RecipeError
from mcompose.recipe import load_recipe

GOOD = """\
schema: 1
name: pair
base: hub:org/base
sources:
  - name: sees
    model: hub:org/sees
    modalities: [image]
  - name: hears
    model: local:hears
merge:
  method: linear
  weights: {sees: 0.5, hears: 0.5}
output:
  dir: build/pair
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def failure(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    error = caught.value
    assert error.exit_code == 2
    assert error.file == str(path)
    where = f"{path}:{error.line}: " if error.line else f"{path}: "
    assert error.message.startswith(where)
    return error.line, error.message.removeprefix(where), error.hint
