"""The processor of a composition with experts: whose block stands where, what each expert is given, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from PIL import Image
from tiny_experts import EXPERTS, write_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.modeling.processing.resampling import resampled
from mcompose.pipeline.write import merge

RANDOM = np.random.default_rng(0)
WIDE = Image.fromarray(RANDOM.integers(0, 255, (16, 64, 3), np.uint8))
TALL = Image.fromarray(RANDOM.integers(0, 255, (60, 20, 3), np.uint8))
SOUND = RANDOM.normal(0, 0.1, 4000).astype(np.float32)
IMAGE, BEGIN, END, SLOT = "<image>", "<domain>", "</domain>", "<expert>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = write_natives(tmp_path_factory.mktemp("talks"))
    for name in ("vit", "pix2struct", "clap"):
        write_expert(name, place / "experts" / name)
    recipe = write_recipe(
        place / "recipe.yaml",
        base=f"local:{place / 'base'}",
        sources=[{"name": name, "model": f"local:{place / name}"} for name in ("sees", "hears")],
        merge={"method": "linear"},
        compose={
            "experts": {
                "photos": {"encoder": f"local:{place / 'experts' / 'vit'}", "domain": "photo"},
                "charts": {"encoder": f"local:{place / 'experts' / 'pix2struct'}", "padding": "drop"},
                "noises": {"encoder": f"local:{place / 'experts' / 'clap'}", "modality": "audio"},
            }
        },
    )
    return merge(recipe, output=place / "out").result.folder


@pytest.fixture(scope="module")
def processor(folder: Path):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def shown(processor, batch, row: int = 0) -> list[str]:
    """The tokens of a row, runs of equal ones counted, ordinary text as dots."""
    found: list = []
    for token in processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][row]):
        if not token.startswith("<"):
            token = "..."
        if found and found[-1][0] == token:
            found[-1][1] += 1
        else:
            found.append([token, 1])
    return [token if count == 1 or token == "..." else f"{token} x {count}" for token, count in found]


def test_the_block_stands_right_behind_its_item(processor):
    batch = processor(text="what <image> what <image> what", images=[WIDE, TALL], experts=["photos", None])
    assert shown(processor, batch) == [
        "...", f"{IMAGE} x 4", BEGIN, "<expert:photos> x 4", END, "...", f"{IMAGE} x 4", "...",
    ]  # fmt: skip
    assert batch["photos__pixel_values"].shape[0] == 1
    assert "charts__flattened_patches" not in batch
    types = batch["mm_token_type_ids"][0].tolist()
    assert [kind for kind in types if kind] == [*[1] * 4, *[5] * 6, *[1] * 4]
    assert types[0] == types[-1] == 0
    assert batch["image_item_tokens"].tolist() == [4, 4]


def test_padding_that_is_dropped_has_no_token(processor):
    batch = processor(text="<image> <image>", images=[WIDE, TALL], experts=["charts", "charts"])
    real = batch["charts__attention_mask"].sum(-1).long().tolist()
    assert real == [2 * 8, 6 * 2]  # rows * columns that fit, sides in proportion
    counts = [entry for entry in shown(processor, batch) if entry.startswith("<expert:charts>")]
    assert counts == [f"<expert:charts> x {count}" for count in real]


def test_auto_leaves_a_slot_and_every_experts_inputs_of_all_items(processor):
    batch = processor(text=["<image> what", "is <image>"], images=[WIDE, TALL], padding=True)
    assert shown(processor, batch)[:2] == [f"{IMAGE} x 4", SLOT]
    assert batch["photos__pixel_values"].shape[0] == 2
    assert batch["charts__flattened_patches"].shape[0] == 2
    assert torch.equal(
        batch["charts__flattened_patches"],
        processor(text="<image> <image>", images=[WIDE, TALL])["charts__flattened_patches"],
    )


def test_none_is_the_plain_composition(processor):
    plain = processor(text="what <image>", images=[WIDE], experts="none")
    assert shown(processor, plain) == ["...", f"{IMAGE} x 4"]
    assert not [key for key in plain if key.startswith(("photos__", "charts__"))]
    text = processor(text="what is")
    assert set(text) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_several_blocks_of_one_item_stand_in_the_order_given(processor):
    batch = processor(text="<image>", images=[WIDE], experts=[("charts", "photos")])
    assert shown(processor, batch) == [
        f"{IMAGE} x 4", BEGIN, "<expert:charts> x 16", END, BEGIN, "<expert:photos> x 4", END,
    ]  # fmt: skip


def test_experts_of_two_modalities(processor, folder):
    routes = {"image": ["photos"], "audio": ["noises"]}
    batch = processor(text="<image> <audio> what", images=[WIDE], audio=[SOUND], experts=routes)
    tokens = shown(processor, batch)
    assert tokens[:4] == [f"{IMAGE} x 4", BEGIN, "<expert:photos> x 4", END]
    assert tokens[-4:] == [BEGIN, "<expert:noises> x 64", END, "..."]
    assert any(token.startswith("<audio> x") for token in tokens[4:-4])
    one = processor(text="<image> <audio>", images=[WIDE], audio=[SOUND], experts="noises")
    assert "photos__pixel_values" not in one
    assert "noises__input_features" in one
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_chat_templates_pass_experts_on(processor):
    chat = [{"role": "user", "content": [{"type": "image", "image": WIDE}, {"type": "text", "text": "what"}]}]
    batch = processor.apply_chat_template(chat, tokenize=True, experts=["photos"])
    assert "<expert:photos> x 4" in shown(processor, batch)
    assert SLOT in shown(processor, processor.apply_chat_template(chat, tokenize=True))


REFUSED = {
    "unknown": (["phtos"], "'phtos' is not an expert for image"),
    "of sounds": (["noises"], "'noises' is not an expert for image"),
    "too many": (["photos", None], "experts names 2 routes, and 1 image"),
    "half auto": (["auto"], None),
    "twice": ([("photos", "photos")], "one expert twice"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_routes_that_do_not_fit_are_refused(case, processor):
    asked, message = REFUSED[case]
    if message is None:
        assert SLOT in shown(processor, processor(text="<image>", images=[WIDE], experts={"image": asked}))
        return
    with pytest.raises(ValueError, match=message):
        processor(text="<image>", images=[WIDE], experts={"image": asked})
    with pytest.raises(ValueError, match="stands alone"):
        processor(text="<image> <image>", images=[WIDE, TALL], experts={"image": ["auto", "photos"]})
    with pytest.raises(ValueError, match="several modalities"):
        processor(text="<image> <audio>", images=[WIDE], audio=[SOUND], experts=["photos", "noises"])


def test_truncation_inside_a_block_is_refused(processor):
    for length in (6, 9):
        with pytest.raises(ValueError, match=r"Truncation cut"):
            processor(
                text="<image> what", images=[WIDE], experts={"image": ["photos"]}, truncation=True, max_length=length
            )


def test_a_sound_is_heard_at_the_experts_own_rate(processor):
    seconds = np.arange(4000) / 8000
    tone = np.sin(2 * math.pi * 440 * seconds).astype(np.float32)
    native = EXPERTS["clap"].processor()
    expected = native(
        np.sin(2 * math.pi * 440 * np.arange(24000) / 48000).astype(np.float32),
        sampling_rate=48000,
        return_tensors="pt",
    )["input_features"]
    batch = processor(text="<audio>", audio=[tone], experts="noises")
    loud = expected > -40  # below that, the filters see the two edges only
    assert float((batch["noises__input_features"] - expected)[loud].abs().median()) < 0.2
    with pytest.raises(ValueError, match=r"1\.5 s is longer than the 1\.0 s that the expert 'noises' hears"):
        processor(text="<audio>", audio=[np.zeros(12000, np.float32)], experts="noises")


@pytest.mark.parametrize(("source", "target"), [(8000, 48000), (48000, 16000), (44100, 16000), (16000, 22050)])
def test_resampling_keeps_a_tone_and_stops_what_the_new_rate_cannot_hold(source, target):
    def tone(rate, hertz):
        return np.sin(2 * math.pi * hertz * np.arange(rate // 4) / rate).astype(np.float32)

    made = resampled(tone(source, 1000), source=source, target=target)
    assert len(made) == math.ceil(source // 4 * target / source)
    inner = slice(len(made) // 4, -len(made) // 4)
    expected = np.sin(2 * math.pi * 1000 * np.arange(len(made)) / target)
    assert np.abs(made - expected)[inner].max() < 0.01
    if target < source:
        high = resampled(tone(source, target * 0.6), source=source, target=target)
        assert np.abs(high[inner]).max() < 0.02
    assert resampled(made, source=8000, target=8000) is made


def test_the_processor_saves_and_loads_itself(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    one, two = (made(text="<image> what", images=[TALL], experts={"image": ["charts"]}) for made in (processor, again))
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert "charts__flattened_patches" in again.model_input_names
