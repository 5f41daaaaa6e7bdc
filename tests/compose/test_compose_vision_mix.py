"""Mixed image encoders from recipe to answers, held against a computation that is written out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from PIL import Image
from safetensors.torch import load_file
from tiny_experts import EXPERTS, native_encoder, write_blip, write_expert
from tiny_models import fill
from tiny_sources import write_recipe
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    Blip2ForConditionalGeneration,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    LlavaForConditionalGeneration,
)

from mcompose.errors import CompositionError, RecipeError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import MergeOptions, merge

IMAGE_KINDS = [name for name, kind in EXPERTS.items() if kind.modality == "image"]
WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 112, 3), np.uint8))
SQUARE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (28, 28, 3), np.uint8))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MIX = {
    "encoders": {
        "clip": {"class_token": "keep"},
        "dino": {"encoder": "dinov2-registers", "class_token": "keep"},
        "conv": {"encoder": "convnext", "size": 32},
    },
    "streams": [{"of": ["clip", "dino", "conv"], "grid": 4}],
    "views": {"size": 28, "tiles": "2x2", "align": "corner"},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name in IMAGE_KINDS:
        write_expert(name, folder / name)
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 8}
    conv = ConvNextModel(ConvNextConfig(**sizes))
    fill(conv, 5)
    conv.save_pretrained(folder / "convnext")
    ConvNextImageProcessor(size={"shortest_edge": 32}, image_mean=IMAGENET[0], image_std=IMAGENET[1]).save_pretrained(
        folder / "convnext"
    )
    write_blip(folder / "blip")
    return folder


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_natives(tmp_path_factory.mktemp("general"))


def recipe(folder: Path, general: Path, checkpoints: Path, mix, *, sources=("sees", "hears"), **changes) -> Path:
    """A recipe whose encoders name kinds of tiny encoders, by default their own names."""
    encoders = {
        name: entry if "source" in entry else {**entry, "encoder": f"local:{checkpoints / entry.get('encoder', name)}"}
        for name, entry in mix["encoders"].items()
    }
    fields = {
        "base": f"local:{general / 'base'}",
        "sources": [{"name": name, "model": f"local:{general / name}"} for name in sources],
        "merge": {"method": "linear", "seed": 3},
        "compose": {"vision_mix": {**mix, "encoders": encoders}},
        **changes,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    return write_recipe(folder / "recipe.yaml", **given)


def composed(folder: Path, *args, **kwargs) -> Path:
    path = recipe(folder, *args, **kwargs)
    return merge(path, output=folder / "out", options=MergeOptions(threads=2)).result.folder


def loaded(folder: Path):
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=False).eval()
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)


@pytest.fixture(scope="session")
def made(tmp_path_factory, general, checkpoints) -> Path:
    return composed(tmp_path_factory.mktemp("made"), general, checkpoints, MIX, sources=("hears",))


def views_of(picture: Image.Image, side: int, colour, *, grid: int) -> list[Image.Image]:
    """The whole picture in a square filled from the upper left corner, then grid x grid tiles of that square."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), colour)
    square.paste(picture, (0, 0))
    sheet = square.resize((grid * side, grid * side), Image.Resampling.BICUBIC)
    tiles = [(c * side, r * side, (c + 1) * side, (r + 1) * side) for r in range(grid) for c in range(grid)]
    return [square.resize((side, side), Image.Resampling.BICUBIC), *(sheet.crop(tile) for tile in tiles)]


def pixels(views, mean, std) -> torch.Tensor:
    values = np.stack([(np.asarray(view) / 255 - mean) / std for view in views])
    return torch.tensor(values.transpose(0, 3, 1, 2), dtype=torch.float32)


@torch.no_grad()
def expected_views(picture: Image.Image, checkpoints: Path, state) -> torch.Tensor:
    """What the language model reads of the views of a wide picture, whose two lower tiles are filling alone."""
    colour = tuple(round(255 * value) for value in CLIP[0])
    shown = slice(0, 3)
    clip, dino = (native_encoder(name, checkpoints / name).eval() for name in ("clip", "dinov2-registers"))
    conv = ConvNextModel.from_pretrained(checkpoints / "convnext").eval()
    clip_VTE = clip.post_layernorm(clip(pixels(views_of(picture, 28, colour, grid=2)[shown], *CLIP)).last_hidden_state)
    dino_VTE = dino(pixels(views_of(picture, 28, colour, grid=2)[shown], *CLIP)).last_hidden_state
    conv_VEHW = conv(pixels(views_of(picture, 32, colour, grid=2)[shown], *IMAGENET)).last_hidden_state
    conv_VEHW = conv.layernorm(conv_VEHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    registers = dino.config.num_register_tokens
    maps, firsts = [], []
    for first_VE, map_VEHW in (
        (clip_VTE[:, 0], clip_VTE[:, 1:].transpose(1, 2).unflatten(2, (2, 2))),
        (dino_VTE[:, 0], dino_VTE[:, 1 + registers :].transpose(1, 2).unflatten(2, (2, 2))),
        (conv_VEHW.mean((2, 3)), conv_VEHW),
    ):
        firsts.append(first_VE)
        times = 4 // map_VEHW.shape[-1]
        maps.append(map_VEHW.repeat_interleave(times, 2).repeat_interleave(times, 3).flatten(2).transpose(1, 2))
    x_VTE = torch.cat([torch.cat(firsts, -1)[:, None], torch.cat(maps, -1)], dim=1)
    head = "model.towers.eyes."
    linear, norm = head + "projectors.0.linear.", head + "projectors.0.norm."
    x_VTD = x_VTE @ state[linear + "weight"].T + state[linear + "bias"]
    x_VTD = torch.nn.functional.layer_norm(x_VTD, x_VTD.shape[-1:], state[norm + "weight"], state[norm + "bias"])
    start, end, empty = (state[head + name][None] for name in ("start", "end", "empty"))
    return torch.cat([row for view in x_VTD for row in (start, view, end)] + [empty, empty])


def test_the_views_of_a_picture_are_the_written_out_computation(made, checkpoints):
    state = load_file(made / "model.safetensors")
    model, processor = loaded(made)
    inputs = processor(text="<image>", images=[WIDE])
    assert inputs["eyes__view_kinds"].tolist() == [1, 1, 1, 0, 0]
    own = {key.removeprefix("eyes__"): value for key, value in inputs.items() if key.startswith("eyes__")}
    with torch.no_grad():
        found = model.model.towers["eyes"].get_image_features(**own).pooler_output
    expected = expected_views(WIDE, checkpoints, state)
    assert int((inputs["mm_token_type_ids"] == 1).sum()) == len(expected) == 3 * (17 + 2) + 2
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_the_language_model_reads_them_in_place(made):
    model, processor = loaded(made)
    inputs = processor(text=["a <image> b", "<image> c"], images=[WIDE, SQUARE])
    own = {key.removeprefix("eyes__"): value for key, value in inputs.items() if key.startswith("eyes__")}
    with torch.no_grad():
        x_ND = model.model.towers["eyes"].get_image_features(**own).pooler_output
        mask = inputs["mm_token_type_ids"] == 1
        x_BLD = model.get_input_embeddings()(inputs["input_ids"].clamp(max=99) * ~mask)
        x_BLD[mask] = x_ND
        read = model.model.language_model(inputs_embeds=x_BLD, attention_mask=inputs["attention_mask"])
        expected = model.lm_head(read.last_hidden_state)
        logits = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)


def test_the_tower_of_a_source_alone_is_that_source(tmp_path, general, checkpoints):
    """One view without learned vectors, of a picture that needs no filling: the source's own logits."""
    mix = {"encoders": {"own": {"source": "sees"}}, "marks": False}
    folder = composed(tmp_path, general, checkpoints, mix, sources=("sees",), base=None)
    model, processor = loaded(folder)
    native = LlavaForConditionalGeneration.from_pretrained(general / "sees").eval()
    theirs = AutoProcessor.from_pretrained(general / "sees")
    with torch.no_grad():
        ours = model(**processor(text="up <image> down", images=[SQUARE])).logits
        expected = native(**theirs(text="up <image> down", images=[SQUARE], return_tensors="pt")).logits
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", IMAGE_KINDS)
def test_every_kind_of_encoder_can_be_mixed(name, tmp_path, general, checkpoints):
    mix = {"encoders": {name: {}}, "views": {"size": 32}}
    folder = composed(tmp_path, general, checkpoints, mix, sources=("hears",))
    model, processor = loaded(folder)
    inputs = processor(text=["<image> x", "<image>"], images=[WIDE, SQUARE])
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.isfinite(logits[inputs["attention_mask"].bool()]).all()
    again = tmp_path / "again"
    model.save_pretrained(again)
    processor.save_pretrained(again)
    model, processor = loaded(again)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**processor(text=["<image> x", "<image>"], images=[WIDE, SQUARE])).logits, logits
        )


def test_a_qformer_is_read_before_its_language_projection(tmp_path, general, checkpoints):
    mix = {"encoders": {"queries": {"encoder": "blip", "part": "qformer"}}, "marks": False}
    mix["streams"] = [{"of": ["queries"], "projector": "linear"}]
    folder = composed(tmp_path, general, checkpoints, mix, sources=("hears",))
    state = load_file(folder / "model.safetensors")
    model, processor = loaded(folder)
    inputs = processor(text="<image>", images=[SQUARE])
    own = {key.removeprefix("eyes__"): value for key, value in inputs.items() if key.startswith("eyes__")}
    blip = Blip2ForConditionalGeneration.from_pretrained(checkpoints / "blip").eval()
    with torch.no_grad():
        found = model.model.towers["eyes"].get_image_features(**own).pooler_output
        native = blip.get_image_features(own["queries__pixel_values"]).qformer_outputs.last_hidden_state[0]
    head = "model.towers.eyes.projectors.0."
    expected = native @ state[head + "weight"].T + state[head + "bias"]
    assert found.shape == (4, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_language_model_and_encoders_become_a_model(tmp_path, general, checkpoints):
    folder = composed(tmp_path, general, checkpoints, MIX, sources=())
    state, base = load_file(folder / "model.safetensors"), load_file(general / "base" / "model.safetensors")
    for key, value in base.items():
        name = key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key
        assert torch.equal(state[name], value), key
    model, processor = loaded(folder)
    answer = model.generate(**processor(text="<image>", images=[WIDE]), max_new_tokens=2, min_new_tokens=2)
    assert answer.shape[1] == 3 * 19 + 2 + 2
    assert json.loads((folder / "mcompose" / "ledger.json").read_text())["modalities"] == ["image"]


def test_the_same_recipe_gives_the_same_bytes(made, tmp_path, general, checkpoints):
    again = composed(tmp_path, general, checkpoints, MIX, sources=("hears",))
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    state = load_file(made / "model.safetensors")
    start = state["model.towers.eyes.start"]
    assert float(start.min()) >= 0
    assert 0.5 < float(start.max()) < 1
    assert not torch.equal(start, state["model.towers.eyes.end"])


def test_plan_counts_the_tokens_of_views(tmp_path, general, checkpoints):
    report = plan(recipe(tmp_path, general, checkpoints, MIX, sources=("hears",))).to_dict()
    assert report["vision_mix"] == {
        "name": "eyes",
        "encoders": {
            "clip": {"encoder": "CLIPVisionModel", "vectors": 5},
            "dino": {"encoder": "Dinov2WithRegistersModel", "vectors": 5},
            "conv": {"encoder": "ConvNextModel", "vectors": 4},
        },
        "tokens_a_view": 19,
        "most_views": 5,
        "most_tokens": 95,
    }


@pytest.mark.parametrize(
    ("mix", "sources", "error", "sentence"),
    [
        ({"encoders": {"clip": {}, "dinov2": {}}}, ("hears",), RecipeError, "there are several encoders"),
        ({"encoders": {"clip": {}}, "streams": [{"of": ["clap"]}]}, ("hears",), RecipeError, "not one of the encoders"),
        ({"encoders": {"clip": {}}, "views": {"tiles": "0x3"}}, ("hears",), RecipeError, "cannot be '0x3'"),
        ({"encoders": {"clip": {}}, "views": {"tiles": "9x9"}}, ("hears",), RecipeError, "cannot be '9x9'"),
        ({"encoders": {"clip": {}}, "views": {"overview": "none"}}, ("hears",), RecipeError, "leaves no view"),
        ({"encoders": {"own": {"source": "saw"}}}, ("sees",), RecipeError, "not the name of a source"),
        ({"encoders": {"own": {"source": "sees", "size": 3}}}, ("sees",), RecipeError, "cannot be set for the tower"),
        (
            {"encoders": {"own": {"source": "sees"}, "clip": {}}, "streams": [{"of": ["own", "clip"]}]},
            ("sees",),
            RecipeError,
            "whose own projector cannot share",
        ),
        ({"encoders": {"own": {"source": "hears"}}}, ("hears",), CompositionError, "takes audio"),
        ({"encoders": {"clip": {}}}, ("sees",), CompositionError, "both bring 'image'"),
        (
            {"encoders": {"pix2struct": {}, "clip": {}}, "streams": [{"of": ["pix2struct", "clip"]}]},
            ("hears",),
            CompositionError,
            "without rows and columns",
        ),
        ({"encoders": {"pix2struct": {"size": 32}}}, ("hears",), CompositionError, "size of encoder .* cannot be set"),
        ({"encoders": {"clip": {"layer": 9}}}, ("hears",), CompositionError, "layer 9 is none of"),
        ({"encoders": {"update": {"encoder": "clip"}}}, ("hears",), CompositionError, "torch uses the word"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused_before_weights_are_read(
    mix, sources, error, sentence, tmp_path, general, checkpoints
):
    with pytest.raises(error, match=sentence):
        plan(recipe(tmp_path, general, checkpoints, mix, sources=sources))


def test_a_recipe_without_sources_needs_a_base_and_encoders(tmp_path, general, checkpoints):
    with pytest.raises(RecipeError, match="'base' is missing"):
        plan(recipe(tmp_path, general, checkpoints, MIX, sources=(), base=None))
    path = write_recipe(
        tmp_path / "empty.yaml", base=f"local:{general / 'base'}", sources=[], merge={"method": "linear"}
    )
    with pytest.raises(RecipeError, match="'sources' is empty"):
        plan(path)
