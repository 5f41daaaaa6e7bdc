"""Layers and grids of experts at the plan: what an encoder has, what it has not, and neighbours folded as they lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as t
from damc_sources import write_natives
from tiny_experts import EXPERTS, native_encoder, write_expert
from tiny_models import fill
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.checkpoint import open_checkpoint
from mcompose.compose.experts import probe as expert_probe
from mcompose.compose.experts.encoder import find_encoder
from mcompose.compose.experts.probe import probe_expert
from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

HIGH = {"height": 64, "width": 32}
SHUFFLE = {"kind": "pixel_shuffle", "depth": 2, "factor": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("layers"))
    for name in EXPERTS:
        write_expert(name, folder / "experts" / name)
    write_high(folder / "experts" / "high", "donut", encoder={"image_size": [64, 32]})
    write_high(folder / "experts" / "thin", "donut", encoder={"image_size": [64, 16]}, size={**HIGH, "width": 16})
    write_stages(folder / "experts" / "stages")
    return folder


def write_stages(folder: Path) -> None:
    """A ResNet, whose config has a width for each stage and none for the last map."""
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    with torch.random.fork_rng():
        model = t.ResNetModel(config).eval()
    fill(model, 5)
    model.save_pretrained(folder)
    t.ViTImageProcessor(size=HIGH).save_pretrained(folder)


def write_high(folder: Path, kind: str, *, encoder: dict, size: dict | None = None) -> None:
    """A Donut that reads pages, which are higher than broad."""
    config = EXPERTS[kind].config()
    for key, value in encoder.items():
        setattr(config.encoder, key, value)
    with torch.random.fork_rng():
        model = t.VisionEncoderDecoderModel(config).eval()
    fill(model, 5)
    model.save_pretrained(folder)
    t.DonutImageProcessor(size=size or HIGH).save_pretrained(folder)


def probed(name: str, place: Path, **changes):
    """What is measured of a tiny expert, with these changes of its entry."""
    folder = place / "experts" / name
    modality = EXPERTS[name].modality if name in EXPERTS else "image"
    found = find_encoder(open_checkpoint(folder), modality=modality, who=f"expert '{name}'")
    entry = {
        "model_type": found.model_type, "class_name": found.class_name, "config": found.config, "modality": modality,
        "domain": "x", "layer": -1, "skip": found.leading, "padding": "keep", "projector": {"kind": "mlp"},
    }  # fmt: skip
    return probe_expert(name, {**entry, **changes}, processor=folder, text_width=32)


def recipe(folder: Path, place: Path, name: str, **spec) -> Path:
    return write_recipe(
        folder / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": "sees", "model": f"local:{place / 'sees'}"}],
        merge={"method": "linear"},
        compose={"experts": {name: {"encoder": f"local:{place / 'experts' / name}", **spec}}},
        output={"format": "composed"},
    )


@pytest.mark.parametrize("name", EXPERTS)
def test_the_layers_of_every_encoder_are_known(name, place):
    """Each has two layers, hence three hidden states: what goes in, and what either layer makes of it."""
    for layer in (1, 2, -3):
        assert probed(name, place, layer=layer).tokens > 0
    for layer in (3, -4, -99):
        with pytest.raises(CompositionError) as caught:
            probed(name, place, layer=layer)
        assert caught.value.message == (
            f"Expert '{name}': its encoder has 3 hidden states, layers 0 to 2 (or -3 to -1); layer {layer} is none of "
            "them."
        )
        assert f"'compose.experts.{name}.layer'" in caught.value.hint


@torch.no_grad()
def test_a_page_s_neighbours_are_folded_as_they_lie(place, tmp_path):
    """The map of the page is 8 x 4, and each token holds the four neighbours of a block of 2 x 2."""
    folder = merge(recipe(tmp_path, place, "high", projector="pixel_shuffle"), output=tmp_path / "out").result.folder
    entry = json.loads((folder / "config.json").read_text())["experts"]["high"]
    assert entry["projector"] == {**SHUFFLE, "grid": [8, 4]}
    assert entry["tokens"] == 8
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=False).eval()
    AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    pixels = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    x = t.VisionEncoderDecoderModel.from_pretrained(place / "experts" / "high").eval().encoder(pixels).last_hidden_state
    at = x.reshape(8, 4, 16)
    wanted = [
        torch.cat([at[row, column], at[row, column + 1], at[row + 1, column], at[row + 1, column + 1]])
        for row in (0, 2, 4, 6) for column in (0, 2)
    ]  # fmt: skip
    read = []
    expert = model.model.experts["high"]
    expert.projector.norm.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    assert expert({"pixel_values": pixels}).counts == [8]
    torch.testing.assert_close(read[0][0], torch.stack(wanted))


@torch.no_grad()
@pytest.mark.parametrize(("layer", "count", "width"), [(-1, 32, 16), (1, 128, 8)])
def test_a_map_without_a_width_in_its_config_is_read_row_by_row(layer, count, width, place, tmp_path):
    made = merge(recipe(tmp_path, place, "stages", layer=layer), output=tmp_path / "out").result.folder
    entry = json.loads((made / "config.json").read_text())["experts"]["stages"]
    assert (entry["tokens"], entry["projector"]["width"]) == (count, width)
    expert = AutoModelForMultimodalLM.from_pretrained(made, trust_remote_code=False).eval().model.experts["stages"]
    pixels = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    native = t.ResNetModel.from_pretrained(place / "experts" / "stages").eval()
    at = native(pixels, output_hidden_states=True).hidden_states[layer][0]
    wanted = torch.stack([at[:, row, column] for row in range(at.shape[1]) for column in range(at.shape[2])])
    assert wanted.shape == (count, width)
    torch.testing.assert_close(expert.encode({"pixel_values": pixels})[0][0], wanted)


GRIDS = {
    "thin": [8, 2], "high": [8, 4], "donut": [4, 4], "sam": [4, 4], "vit": [2, 2], "dinov2-registers": [2, 2],
    "internvl": [2, 2],
}  # fmt: skip


def test_the_width_and_the_grid_of_a_map_are_measured(place):
    assert probed("stages", place, projector=SHUFFLE).measured == {"width": 16, "grid": [8, 4]}


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_is_the_encoder_s(name, place):
    assert probed(name, place, projector=SHUFFLE).measured == {"grid": GRIDS[name]}


def test_an_earlier_stage_has_a_finer_grid(place):
    assert probed("high", place, projector=SHUFFLE, layer=0).measured == {"grid": [16, 8]}
    assert probed("sam", place, projector=SHUFFLE, layer=1).measured == {"grid": [4, 4]}


@pytest.mark.parametrize("name", ["pix2struct", "kosmos", "siglip2", "whisper", "ast", "clap"])
def test_without_one_grid_there_are_no_neighbours(name, place):
    with pytest.raises(CompositionError) as caught:
        probed(name, place, projector=SHUFFLE)
    why = (
        "the vectors of a sound are a sequence" if name in ("whisper", "ast", "clap") else "another grid for each image"
    )
    assert f"'{name}' has 'projector: pixel_shuffle'" in caught.value.message
    assert why in caught.value.message
    assert "'mlp', 'linear', or 'resampler'" in caught.value.hint


MISTAKES = {
    "class token": ("vit", {"class_token": "keep", "projector": "pixel_shuffle"},
                    "keeps 5 vectors of an image, where its encoder's grid has 2 x 2", "experts.vit.class_token'"),
    "dropped of a map": ("sam", {"class_token": 3, "projector": "pixel_shuffle"},
                         "it keeps 13 vectors of an image, where its encoder's grid has 4 x 4", "sam.class_token'"),
    "factor": ("high", {"projector": {"kind": "pixel_shuffle", "factor": 3}},
               "32 vectors are no grid of 8 x 4 in blocks of 3 x 3: the projector's 'factor' must divide both", ""),
    "heads": ("vit", {"projector": {"kind": "resampler", "heads": 7}},
              "must divide the language model's width, and 7 heads do not divide 32", "experts.vit.projector'"),
    "layer of Kosmos": ("kosmos", {"layer": 3}, "'kosmos': its encoder has 3 hidden states", "experts.kosmos.layer'"),
    "layer of SigLIP 2": ("siglip2", {"layer": 99}, "'siglip2': its encoder has 3 hidden states", "siglip2.layer'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_plan_tells_the_recipe_s_key(case, place, tmp_path):
    name, spec, message, hint = MISTAKES[case]
    with pytest.raises(CompositionError) as caught:
        plan(recipe(tmp_path, place, name, **spec))
    assert message in caught.value.message
    assert hint in caught.value.hint


@torch.no_grad()
def test_a_chosen_layer_of_kosmos_is_read(place, tmp_path):
    """Its class returns no hidden states; the first is what its embeddings make."""
    folder = merge(recipe(tmp_path, place, "kosmos", layer=0), output=tmp_path / "out").result.folder
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=False).eval()
    patches = torch.rand(1, 16, 50, generator=torch.Generator().manual_seed(0))
    patches[..., :2] = torch.tensor([[k // 4 + 1, k % 4 + 1] for k in range(16)])
    found, _ = model.model.experts["kosmos"].encode({"flattened_patches": patches})
    native = native_encoder("kosmos", place / "experts" / "kosmos")
    torch.testing.assert_close(found, native.embeddings(patches))


@pytest.mark.parametrize(
    ("shape", "picture", "wanted"),
    [
        ((1, 32, 32, 768), (1024, 1024), (1024, 768, (32, 32))),  # Sam2's maps have their channels last
        ((1, 768, 32, 32), (1024, 1024), (1024, 768, (32, 32))),
        ((1, 8, 4, 16), (256, 128), (32, 16, (8, 4))),
        ((1, 16, 8, 4), (256, 128), (32, 16, (8, 4))),
        ((1, 7, 10, 64), (100, 150), (70, 64, (7, 10))),  # rounded up
    ],
)
def test_channels_are_where_the_map_is_unlike_the_picture(shape, picture, wanted):
    seen = expert_probe._sequence(torch.empty(shape, device="meta"), expert_probe._ASSUMED, sides=picture)
    assert (seen.vectors, seen.width, seen.sides) == wanted
