"""What a blueprint refuses before anything is read."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_sources import write_recipe

from mcompose.compose import make_blueprint
from mcompose.errors import CompositionError
from mcompose.recipe import load_recipe


def test_a_head_with_fewer_rows_than_the_embedding_is_refused(sources, tmp_path):
    for name in ("base", "expert"):
        shutil.copytree(sources / name, tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "expert", "model": "local:expert"}, {"name": "first", "model": "local:base"}],
        merge={"method": "naivemc"},
        output={"dir": "out"},
    )
    with pytest.raises(CompositionError, match=r"'lm_head\.weight' of 'expert' has 100 rows, and its embedding 120"):
        make_blueprint(load_recipe(recipe), weights=False)
