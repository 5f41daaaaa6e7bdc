"""A composition with one source is that source: logits, generation and names."""

import pytest
import torch
from composed_models import SHARED, compose, one_source, renamed, served
from tiny_configs import TOKENS
from tiny_models import MULTIMODAL, TINY, tiny_inputs, tiny_model

from mcompose.modeling import ComposedForConditionalGeneration, composed_config, in_weights_dtype, stored_source
from mcompose.modeling.families import refusal

EXACT = [model_type for model_type in MULTIMODAL if refusal(model_type) is None]


def test_almost_every_family_is_exact_and_the_rest_has_a_reason():
    refused = [model_type for model_type in MULTIMODAL if model_type not in EXACT]
    assert refused == ["phi4_multimodal"]


@pytest.mark.parametrize("model_type", EXACT)
@torch.no_grad()
def test_one_source_gives_the_sources_own_logits(model_type):
    native, composed, inputs, mine = one_source(model_type)
    assert torch.equal(composed(**mine).logits, native(**inputs).logits)
    other = tiny_inputs(model_type, native, seed=5)
    assert torch.equal(composed(**renamed(other, "only")).logits, native(**other).logits)


@pytest.mark.parametrize("model_type", ["llava_next", "qwen2_5_omni_thinker", "gemma3", "paligemma", "qwen2_audio"])
@torch.no_grad()
def test_one_source_generates_the_sources_own_tokens(model_type):
    native, composed, inputs, mine = one_source(model_type)
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(composed.generate(**mine, **asked), native.generate(**inputs, **asked))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_grids_need_no_token_types(model_type):
    """The native classes refuse M-RoPE without mm_token_type_ids; ours follow from the placeholders."""
    native, composed, inputs, mine = one_source(model_type)
    del mine["mm_token_type_ids"]
    assert torch.equal(composed(**mine).logits, native(**inputs).logits)


@torch.no_grad()
def test_text_alone_is_the_language_model_alone():
    native, composed, _, _ = one_source("llava")
    ids = torch.tensor([[1, 5, 9, 3]])
    assert torch.equal(composed(input_ids=ids).logits, native(input_ids=ids).logits)


def test_parameter_names_are_those_of_the_native_base_model():
    native, composed, _, _ = one_source("llava_next")
    names = {name.removeprefix("model.towers.only.") for name in composed.state_dict() if ".towers." in name}
    assert names == {name for name in native.model.state_dict() if not name.startswith("language_model.")}
    assert "image_newline" in names
    rest = {name for name in composed.state_dict() if ".towers." not in name}
    assert rest == {f"model.{n}" for n in native.model.state_dict() if n.startswith("language_model.")} | {
        "lm_head.weight"
    }


@pytest.mark.parametrize("model_type", ["phi4_multimodal", "mllama", "idefics", "fuyu"])
def test_families_that_cannot_be_composed_are_refused_with_a_reason(model_type):
    entry = {"model_type": model_type, "config": {}, "modalities": ["image"]}
    with pytest.raises(ValueError, match=f"Source 'x' \\({model_type}\\) cannot be composed: it"):
        composed_config({"model_type": "llama"}, {"x": entry}, placeholders={"image": 5})


def test_deepstack_features_need_a_language_model_that_takes_them():
    entry = stored_source(TINY["qwen3_vl"](), modalities=["image"])
    with pytest.raises(ValueError, match="needs a language model of type qwen3_vl_text"):
        composed_config(TINY["qwen3"](), {"x": entry}, placeholders={"image": 120})


@torch.no_grad()
def test_structural_tokens_follow_the_compositions_own_ids():
    """Ovis2 learns vectors for its image marks; they must sit where the composition's tokenizer has the marks."""
    native, _, inputs, mine = one_source("ovis2")
    ids = inputs["input_ids"].clone()
    ids[0, 1], ids[0, -1] = 110, 112
    wanted = native(**{**inputs, "input_ids": ids}).logits
    from composed_folders import composed_state

    entry = stored_source(native.config, modalities=["image"], structure_ids=[500, 501, 502, 503, 504])
    config = composed_config(
        native.config.get_text_config(), {"only": entry}, placeholders={"image": 120}, tie_word_embeddings=False
    )
    composed = ComposedForConditionalGeneration(config).eval()
    composed.load_state_dict(composed_state(native, {"only": native}))
    ids[0, 1], ids[0, -1] = 500, 502
    assert torch.equal(composed(**{**mine, "input_ids": ids}).logits, wanted)


def test_served_lists_what_tiny_inputs_hold():
    assert served({"input_ids": torch.tensor([[1, 120, 122]])}) == ["image", "audio"]


@pytest.mark.parametrize("model_type", ["internvl", "smolvlm"])
@torch.no_grad()
def test_videos_of_the_image_path_have_names_of_their_own(model_type):
    """These families send frames through their image features; images and videos must not share an input."""
    native = tiny_model(model_type)
    inputs = tiny_inputs(model_type, native)
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == TOKENS["image"], TOKENS["video"])
    given = {f"only__video_{key}": value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    composed = compose(native, {"only": native}, {"only": ["image", "video"]}, TOKENS)
    wanted = native(**inputs).logits
    assert torch.equal(composed(input_ids=ids, **given).logits, wanted)
    both = torch.cat([inputs["input_ids"], ids], dim=1)
    images = {key.replace("video_", ""): value for key, value in given.items()}
    doubled = composed(input_ids=both, **given, **images).logits
    torch.testing.assert_close(doubled[:, : ids.shape[1]], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["llava", "gemma3", "paligemma", "qwen2_5_vl", "qwen2_5_omni_thinker"])
@torch.no_grad()
def test_padded_prompts_are_the_sources_own(model_type, side):
    native, composed, inputs, _ = one_source(model_type)
    padding = (3, 0) if side == "left" else (0, 3)
    padded = {key: torch.nn.functional.pad(value, padding) if key in SHARED else value for key, value in inputs.items()}
    mine = renamed(padded, "only")
    real = padded["attention_mask"].bool()
    assert torch.equal(composed(**mine).logits[real], native(**padded).logits[real])
    if side == "left":
        asked = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(composed.generate(**mine, **asked), native.generate(**padded, **asked))


@pytest.mark.parametrize("model_type", EXACT)
@torch.no_grad()
def test_sixteen_bit_towers_read_what_processors_give(model_type):
    """Processors give float32; the reference is the native model on inputs that were cast by hand."""
    native, composed, inputs, mine = one_source(model_type)
    native, composed = native.bfloat16(), composed.bfloat16()
    seconds = {"second_per_grid_ts", "video_second_per_grid"}
    cast = {k: v.bfloat16() if v.is_floating_point() and k not in seconds else v for k, v in inputs.items()}
    assert torch.equal(composed(**mine).logits, native(**cast).logits)
    by_hand = in_weights_dtype(native, inputs)
    assert {key: value.dtype for key, value in by_hand.items()} == {key: value.dtype for key, value in cast.items()}
