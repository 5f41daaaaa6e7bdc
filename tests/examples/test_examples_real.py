"""Real pretrained weights: the composition keeps the language model's knowledge and every encoder's features.

Minutes of downloads and training the first time; `build/real` keeps what was made.
"""

from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def folder() -> Path:
    pytest.importorskip("onnx", reason="reading the image encoder needs onnx")
    from examples.real.run import FOLDER, make_sources, write_recipe
    from mcompose.pipeline.write import merge

    make_sources(FOLDER)
    merge(write_recipe(FOLDER))
    return FOLDER


@pytest.fixture(scope="module")
def composed(folder: Path):
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    path = folder / "composed"
    model = AutoModelForMultimodalLM.from_pretrained(path, trust_remote_code=True).eval()
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=True)


def test_the_capital_of_france_is_still_paris(composed):
    from examples.real.run import answer

    model, processor = composed
    assert "Paris" in answer(model, processor, "The capital of France is", chat=False)


def test_image_features_are_those_of_the_source(folder, composed):
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from examples.real.assets import fetch

    picture = Image.open(fetch("shapes", folder / "assets").parent / "images/0.png").convert("RGB")
    source = LlavaForConditionalGeneration.from_pretrained(folder / "sees").eval()
    processor = AutoProcessor.from_pretrained(folder / "sees")
    pixels = processor(text="<image>", images=picture, return_tensors="pt")["pixel_values"].to(source.dtype)
    model, own = composed
    inputs = own(text="<image>", images=picture, return_tensors="pt")
    assert torch.equal(inputs["sees__pixel_values"].to(source.dtype), pixels)
    with torch.no_grad():
        expected = source.model.get_image_features(pixels).pooler_output
        features = model.model.towers["sees"].get_image_features(pixels).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


def test_audio_features_are_those_of_the_source(folder, composed):
    from transformers import AudioFlamingo3ForConditionalGeneration, AutoProcessor

    from examples.real.assets import fetch_sounds
    from examples.real.sources import read_sound

    sound = read_sound(fetch_sounds(folder / "assets") / "digits/7.wav")
    source = AudioFlamingo3ForConditionalGeneration.from_pretrained(folder / "hears").eval()
    processor = AutoProcessor.from_pretrained(folder / "hears")
    inputs = processor(text="<sound>", audio=sound, return_tensors="pt")
    media = (inputs["input_features"].to(source.dtype), inputs["input_features_mask"])
    with torch.no_grad():
        expected = source.model.get_audio_features(*media).pooler_output
        features = composed[0].model.towers["hears"].get_audio_features(*media).pooler_output
    assert torch.equal(features, expected)
