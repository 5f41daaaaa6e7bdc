"""One answer from the command line's function is what plain transformers answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mcompose.errors import RequestError
from mcompose.pipeline.measure import GenerateOptions, generate

OPTIONS = GenerateOptions(max_new_tokens=4, plain=True)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_answer_is_that_of_plain_transformers(sources, picture):
    prompt = "USER : <image> what is this ? ASSISTANT :"
    processor = AutoProcessor.from_pretrained(sources / "sees")
    model = AutoModelForImageTextToText.from_pretrained(sources / "sees").eval()
    inputs = processor(text=prompt, images=Image.open(picture), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert generate(sources / "sees", prompt, media={"image": [picture]}, options=OPTIONS) == expected


def test_media_without_a_placeholder_come_first(sources, picture):
    given = {"image": [picture]}
    with_mark = generate(sources / "sees", "<image> what is this ?", media=given, options=OPTIONS)
    assert generate(sources / "sees", "what is this ?", media=given, options=OPTIONS) == with_mark


@pytest.mark.parametrize(
    ("checkpoint", "prompt", "media", "message"),
    [
        ("sees", "<image> <image> ?", {"image": ["picture.png"]}, "2 '<image>' and 1 image files"),
        ("sees", "what ?", {"image": ["none.png"]}, "none.png"),
        ("base", "what ?", {"image": ["picture.png"]}, "does not take image; it takes text only"),
    ],
    ids=["count", "missing", "text only"],
)
def test_what_cannot_be_asked_is_refused(sources, picture, checkpoint, prompt, media, message):
    files = {modality: [picture.parent / name for name in names] for modality, names in media.items()}
    with pytest.raises(RequestError, match=message):
        generate(sources / checkpoint, prompt, media=files, options=OPTIONS)
