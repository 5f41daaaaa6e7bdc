"""Processor and network together: asking the router is naming the expert, from text and pictures to logits."""

import numpy as np
import pytest
import torch
from composed_folders import config_for, tiny_tokenizer
from expert_models import charts, image_router, maths
from PIL import Image
from tiny_models import fill, tiny_model
from tiny_processors import clip, llava
from transformers import ClapFeatureExtractor, Pix2StructImageProcessor

from mcompose.modeling import ComposedForConditionalGeneration, add_placeholders, build_processor
from mcompose.modeling.experts.processing import add_expert_tokens, expert_summary, native_inputs

TEXTS = ["USER : <image> what is it ? ASSISTANT :", "USER : <image> a <image> ASSISTANT :", "USER : two ASSISTANT :"]


def pictures(count):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (30 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module", params=["keep", "mask", "drop"])
def whole(request):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    source = tiny_model("llava")
    placeholders = add_placeholders(tokenizer, ["image"])
    padding = request.param
    experts = {
        "charts": charts(padding=padding, tokens="attention_mask" if padding == "drop" else 12),
        "maths": maths(),
    }
    tokens = add_expert_tokens(tokenizer, list(experts))
    router = image_router("maths", "charts")
    config = config_for(
        source, {"sees": source}, {"sees": ["image"]}, placeholders, experts=experts, routers=router, **tokens
    )
    model = ComposedForConditionalGeneration(config).eval()
    fill(model, 0)
    summaries = {
        "charts": expert_summary(experts["charts"], inputs=["flattened_patches", "attention_mask"], vectors=12),
        "maths": expert_summary(experts["maths"], inputs=["pixel_values"], vectors=5),
    }
    processor = build_processor(
        tokenizer, config.sources, processors={"sees": llava()}, experts=summaries, routers=["image"]
    )
    patches = Pix2StructImageProcessor(max_patches=12, patch_size={"height": 2, "width": 2})
    processor.expert_media.processors.update({"charts": patches, "maths": clip()})
    with torch.no_grad():
        seen = processor(text=TEXTS, images=pictures(3), experts="none")["sees__pixel_values"]
        cls = model.model.towers["sees"].vision_tower(seen).last_hidden_state[:, 0]
        model.model.routers["image"].weight.copy_((torch.linalg.pinv(cls) @ (5 * torch.eye(3)[[2, 0, 1]])).T)
    return model, processor


@torch.no_grad()
def test_asking_the_router_is_naming_the_expert(whole):
    model, processor = whole
    asked = processor(text=TEXTS, images=pictures(3))
    named = processor(text=TEXTS, images=pictures(3), experts=["charts", None, "maths"])
    out = model.route(**asked)
    assert out["routes"] == [["charts"], [], ["maths"]]
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert torch.equal(out[key], named[key]), key
    wanted = model(**named).logits
    assert torch.equal(model(**out).logits, wanted)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    one = model.generate(**asked, **options)
    two = model.generate(**named, **options)
    assert torch.equal(one[:, asked["input_ids"].shape[1] :], two[:, named["input_ids"].shape[1] :])
    assert torch.equal(two[:, named["input_ids"].shape[1]], wanted[:, -1].argmax(-1))
    assert torch.equal(model.generate(**out, **options), two)


@torch.no_grad()
def test_labels_go_with_the_items_of_the_processor(whole):
    model, processor = whole
    named = processor(text=TEXTS, images=pictures(3), experts=["charts", None, "maths"])
    out = model(**named, router_labels=torch.tensor([2, 0, 1]))
    assert out.router_logits["image"].argmax(-1).tolist() == [2, 0, 1]
    text = processor(text="USER : two ASSISTANT :")
    again = model.route(**text)
    assert torch.equal(model(**again).logits, model(**text).logits)


@pytest.mark.parametrize("more", [{}, {"n_samples": 96000}], ids=["own", "and another limit"])
def test_a_clap_that_fuses_is_told_that_no_sound_is_longer(more):
    """Its extractor draws one of the sounds, of numpy's own generator, and calls it longer than it is."""
    extractor = ClapFeatureExtractor(feature_size=16, max_length_s=1, **more)
    assert extractor.truncation == "fusion"
    generator = np.random.default_rng(0)
    sounds = [generator.normal(0, 0.1, length).astype(np.float32) for length in (48000, 12000, 30000)]
    entry = {"modality": "audio", "inputs": ["input_features", "is_longer"]}
    made = native_inputs(extractor, sounds, entry, name="noises")
    native = [extractor(sound, sampling_rate=48000, return_tensors="pt")["input_features"] for sound in sounds]
    assert torch.equal(made["input_features"], torch.cat(native))
    assert made["is_longer"].dtype == torch.bool
    assert made["is_longer"].tolist() == [[False], [False], [False]]
    with pytest.raises(ValueError, match=r"longer than the 1\.0 s that the expert 'noises' hears"):
        native_inputs(extractor, [np.zeros(48001, np.float32)], entry, name="noises")
