"""What published mergekit files carry and what it means: words without effect, names with signs, other tools' files."""

from pathlib import Path

import pytest
import yaml

from mcompose.errors import RecipeError
from mcompose.recipe import load_recipe

TWO = {"merge_method": "slerp", "base_model": "org/a", "parameters": {"t": 0.5}, "dtype": "float32"}


def _load(folder: Path, **changes: object):
    path = folder / "mergekit.yml"
    path.write_text(yaml.safe_dump({**TWO, "models": [{"model": "org/a"}, {"model": "org/b"}], **changes}))
    return load_recipe(path)


def test_an_architecture_that_is_not_overridden_changes_nothing(tmp_path):
    named = {"model": {"path": "org/b"}, "override_architecture": None}
    plain, spelt = _load(tmp_path), _load(tmp_path, models=[{"model": "org/a"}, {"model": named}])
    assert spelt.recipe == plain.recipe


def test_embed_slerp_is_told_to_have_no_effect(tmp_path):
    loaded = _load(tmp_path, parameters={"t": 0.5, "embed_slerp": True})
    assert loaded.recipe == _load(tmp_path).recipe
    assert any("'embed_slerp' has no effect" in note for note in loaded.notes)


def test_a_union_of_tokenizers_is_left_to_the_plan(tmp_path):
    assert _load(tmp_path, tokenizer_source="union").recipe.merge.tokenizer == "union"
    assert _load(tmp_path, tokenizer={}).recipe.merge.tokenizer == "union"  # mergekit's default


@pytest.mark.parametrize("name", ["a+b", "v1@2", "a+b@c", "a+b+c", "+"])
def test_a_folder_is_a_model_whatever_its_name_has_in_it(tmp_path, name):
    (tmp_path / name).mkdir()
    sources = _load(tmp_path, models=[{"model": "org/a"}, {"model": name}]).recipe.sources
    assert (str(sources[1].model), sources[1].adapter) == (f"local:{name}", None)


def test_a_folder_with_a_sign_in_its_name_takes_an_adapter_too(tmp_path):
    for name in ("a+b", "lora@1"):
        (tmp_path / name).mkdir()
    for adapter in ("lora@1", "org/lora@v2"):
        source = _load(tmp_path, models=[{"model": "org/a"}, {"model": f"a+b+{adapter}"}]).recipe.sources[1]
        kind = "local" if adapter == "lora@1" else "hub"
        assert (str(source.model), str(source.adapter)) == ("local:a+b", f"{kind}:{adapter}")


@pytest.mark.parametrize("more", [{"gate_mode": "hidden"}, {}], ids=["gate", "plain"])
def test_a_file_of_mergekit_moe_is_named(tmp_path, more):
    path = tmp_path / "moe.yml"
    experts = [{"source_model": "org/b", "positive_prompts": ["code"]}]
    path.write_text(yaml.safe_dump({"base_model": "org/a", "experts": experts, **more}))
    with pytest.raises(RecipeError, match="mergekit-moe") as refused:
        load_recipe(path)
    assert "mergekit-moe" in (refused.value.hint or "")


def _sliced(folder: Path, *ranges: tuple[str, list[int]]):
    pieces = [{"sources": [{"model": model, "layer_range": taken}]} for model, taken in ranges]
    path = folder / "mergekit.yml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "dtype": "float32", "slices": pieces}))
    return load_recipe(path)


def test_a_range_of_no_layers_is_read(tmp_path):
    slices = _sliced(tmp_path, ("org/a", [0, 0]), ("org/b", [0, 4])).recipe.merge.slices
    assert [piece.num_layers for piece in slices] == [0, 4]


@pytest.mark.parametrize("taken", [[3, 2], [-1, 2]], ids=str)
def test_a_range_that_runs_backwards_is_refused(tmp_path, taken):
    with pytest.raises(RecipeError, match="layer_range"):
        _sliced(tmp_path, ("org/a", taken))


def test_slices_without_any_layer_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="have no layers"):
        _sliced(tmp_path, ("org/a", [0, 0]), ("org/b", [2, 2]))
