"""Merges of published mergekit files, against mergekit's own result: unions of one tokenizer, ranges of no layers."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_sources import tokenizer, write_language_model

from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b")):
        write_language_model(folder / name, change=0.05, seed=seed)
    return folder


def _file(path: Path, **config: object) -> Path:
    path.write_text(yaml.safe_dump({"dtype": "float32", **config}))
    return path


def _linear(models: Path, path: Path, **more: object) -> Path:
    listed = [{"model": str(models / name), "parameters": {"weight": 0.5}} for name in ("a", "b")]
    return _file(path, merge_method="linear", models=listed, **more)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_union_of_equal_tokenizers_is_the_merge_without_that_line(models, tmp_path):
    merge(_linear(models, tmp_path / "plain.yml"), output=tmp_path / "plain")
    merge(_linear(models, tmp_path / "union.yml", tokenizer_source="union"), output=tmp_path / "union")
    plain, union = _tensors(tmp_path / "plain"), _tensors(tmp_path / "union")
    assert list(plain) == list(union)
    assert all(torch.equal(plain[key], union[key]) for key in plain)


@pytest.mark.parametrize("damage", ["other", "none"])
def test_the_union_of_other_tokenizers_is_refused_by_name(models, tmp_path, damage):
    write_language_model(tmp_path / "b", change=0.05, seed=1)
    (tmp_path / "a").symlink_to(models / "a")
    if damage == "other":
        tokenizer("<extra>").save_pretrained(tmp_path / "b")
    else:
        (tmp_path / "b/tokenizer.json").unlink()
    with pytest.raises(CompositionError, match=r"union of tokenizers.*'b'") as refused:
        plan(_linear(tmp_path, tmp_path / "union.yml", tokenizer_source="union"))
    assert "tokenizer_source" in (refused.value.hint or "")


def test_ranges_of_no_layers_give_what_lies_around_the_layers_as_in_mergekit(models, tmp_path):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    a, b = (str(models / name) for name in ("a", "b"))
    pieces = [(a, [0, 0]), (b, [0, 2]), (a, [2, 2])]
    slices = [{"sources": [{"model": model, "layer_range": taken}]} for model, taken in pieces]
    path = _file(tmp_path / "slices.yml", merge_method="passthrough", slices=slices)
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    run_merge(config, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True))
    merge(path, output=tmp_path / "ours")
    ours, theirs = _tensors(tmp_path / "ours"), _tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
