"""Towers of whole models: gradients run over their own layers as mergekit's do, and slices do not copy one silently."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_sources import tokenizer, write_recipe
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)

from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

DEPTH, TOWER_DEPTH = 4, 3
ENCODER = "vision_tower.transformer.layers.{}.attention.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A vision-language model and two tunes of it; its tower has another depth than its language model."""
    folder = tmp_path_factory.mktemp("models")
    text = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=TOWER_DEPTH, num_attention_heads=2, image_size=28,
        patch_size=14, head_dim=8,
    )  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=60, vision_feature_layer=-1)
    config.tie_word_embeddings = False
    model = Mistral3ForConditionalGeneration(config)
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.004 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


def _mergekit(folder: Path, config: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    path = folder / "mergekit.yml"
    path.write_text(yaml.safe_dump(config))
    options = MergeOptions(copy_tokenizer=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(folder / "theirs"), options)
    merge(path, output=folder / "ours")
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("ours", "theirs"))
    return ours, theirs


@pytest.mark.parametrize("method", ["slerp", "linear", "ties"])
def test_a_gradient_over_a_whole_model_is_mergekits(models, tmp_path, method):
    a, b, base = (str(models / name) for name in ("a", "b", "base"))
    config = {"merge_method": method, "dtype": "float32"}
    if method == "slerp":
        config |= {"models": [{"model": a}, {"model": b}], "base_model": a, "parameters": {"t": [0, 0.4, 1]}}
    else:
        weights = ([0.1, 0.9], [1.0, 0.2, 0.5])
        config["models"] = [
            {"model": model, "parameters": {"weight": weight}} for model, weight in zip((a, b), weights, strict=True)
        ]
    if method == "ties":
        config |= {"base_model": base, "parameters": {"density": [0.3, 0.8]}}
    ours, theirs = _mergekit(tmp_path, config)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def _recipe(folder: Path, models: Path, names: tuple[str, ...], **settings: object) -> Path:
    return write_recipe(
        folder / "recipe.yaml",
        sources=[{"name": name, "model": f"local:{models / name}"} for name in names],
        merge={"method": "linear", **settings},
        compose={"towers": "merge"},
        output={"dir": "out"},
    )


def test_overrides_by_layer_are_for_the_language_model_unless_they_name_the_encoder(models, tmp_path):
    half, only = {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.0}
    overrides = [
        {"match": {"layers": [0, 0]}, "weights": {"a": 0.0, "b": 1.0}},
        {"match": {"part": "encoder", "layers": [1, 2]}, "weights": only},
    ]
    merge(_recipe(tmp_path, models, ("a", "b"), weights=half, overrides=overrides))
    ours, a, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models / "a", models / "b"))
    key = next(key for key in a if key.endswith(ENCODER.format(0)))
    torch.testing.assert_close(ours[key], (a[key] + b[key]) / 2)
    for layer in (1, 2):
        torch.testing.assert_close(ours[key.replace(".0.", f".{layer}.")], a[key.replace(".0.", f".{layer}.")])
    text = next(key for key in a if key.endswith("layers.0.mlp.up_proj.weight"))
    torch.testing.assert_close(ours[text], b[text])


def _slices(models: Path, *pieces: list[tuple[str, list[int]]]) -> dict:
    return {
        "merge_method": "linear" if len(pieces[0]) > 1 else "passthrough",
        "dtype": "float32",
        "parameters": {"weight": 0.5},
        "slices": [
            {"sources": [{"model": str(models / name), "layer_range": taken} for name, taken in piece]}
            for piece in pieces
        ],
    }


def test_slices_of_several_models_with_towers_are_refused(models, tmp_path):
    path = tmp_path / "mergekit.yml"
    path.write_text(yaml.safe_dump(_slices(models, [("a", [0, 2])], [("b", [1, 4])])))
    for step in (plan, merge):
        with pytest.raises(CompositionError, match="say nothing of the encoders"):
            step(path, output=tmp_path / "out")


def test_one_slice_over_all_layers_is_an_ordinary_merge_towers_included(models, tmp_path):
    path = tmp_path / "mergekit.yml"
    path.write_text(yaml.safe_dump(_slices(models, [("a", [0, DEPTH]), ("b", [0, DEPTH])])))
    merge(path, output=tmp_path / "out")
    ours, a, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models / "a", models / "b"))
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, (a[key] + b[key]) / 2, rtol=1e-5, atol=1e-6, msg=key)


def test_a_stack_of_one_models_layers_keeps_its_tower(models, tmp_path):
    path = tmp_path / "mergekit.yml"
    path.write_text(yaml.safe_dump(_slices(models, [("a", [0, 3])], [("a", [1, 4])])))
    merge(path, output=tmp_path / "out")
    ours, a = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models / "a"))
    key = next(key for key in a if key.endswith(ENCODER.format(2)))
    assert torch.equal(ours[key], a[key])
    model, info = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.text_config.num_hidden_layers == 6
