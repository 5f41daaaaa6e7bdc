"""Positions: M-RoPE as the native classes count it, beside sources that do not, and the fallback to one dimension."""

import pytest
import torch
from composed_models import compose, one_source, placeholder_rows
from tiny_configs import AUDIO, IMAGE, VIDEO
from tiny_models import tiny_inputs, tiny_model

from mcompose.modeling.families import family_of
from mcompose.modeling.network.placement import type_ids
from mcompose.modeling.positions.mrope import Grid, mrope_positions

START, END = 123, 124


def native_positions(model_type, base, ids, mask, media):
    if model_type == "qwen2_5_omni_thinker":
        lengths = media["feature_attention_mask"].sum(-1)
        return base.get_rope_index(
            ids, media["image_grid_thw"], media["video_grid_thw"], mask, False, lengths, media["video_second_per_grid"]
        )
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    extra = {"second_per_grid_ts": media["second_per_grid_ts"]} if "second_per_grid_ts" in media else {}
    return base.get_rope_index(
        ids,
        types,
        image_grid_thw=media["image_grid_thw"],
        video_grid_thw=media["video_grid_thw"],
        attention_mask=mask,
        **extra,
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_are_the_native_ones_in_padded_batches(model_type, side):
    native, composed, _, _ = one_source(model_type)
    frames = [START, *[VIDEO] * 4, END, 7] * 3 if model_type == "qwen3_vl" else [START, *[VIDEO] * 12, END]
    rows = [[1, 5, START, *[IMAGE] * 8, END, 7, *frames, 9], [3, START, *[IMAGE] * 6, END, *frames, 11, 12]]
    ids, mask = placeholder_rows(48, *rows, side=side)
    media = {
        "image_grid_thw": torch.tensor([[1, 4, 8], [1, 6, 4]]),
        "video_grid_thw": torch.tensor([[3, 4, 4], [3, 4, 4]]),
    }
    if model_type == "qwen2_5_vl":
        media["second_per_grid_ts"] = torch.tensor([0.5, 2.0])
    wanted, deltas = native_positions(model_type, native.model, ids, mask, media)
    split = {
        "image": {"image_grid_thw": media["image_grid_thw"]},
        "video": {k: v for k, v in media.items() if k != "image_grid_thw"},
    }
    mine, my_deltas = composed.model.rope_positions(type_ids(composed.model.ids, ids), split, mask)
    assert torch.equal(mine, wanted)
    assert torch.equal(my_deltas, deltas)


def test_omni_positions_are_the_native_ones():
    native, composed, inputs, mine = one_source("qwen2_5_omni_thinker")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    # Before transformers 5.2x the class with the head did the counting itself.
    base = native.model if hasattr(native.model, "get_rope_index") else native
    wanted, deltas = native_positions("qwen2_5_omni_thinker", base, ids, mask, inputs)
    types = type_ids(composed.model.ids, ids)
    positions, my_deltas = composed.model.rope_positions(types, composed.model.media_inputs(mine), mask)
    assert torch.equal(positions, wanted)
    assert torch.equal(my_deltas, deltas)


def test_a_hand_computed_row():
    """Two words, a 2 x 3 image, one word: the image is laid out from 2, the word goes on at 2 + 3."""
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0]])
    positions, deltas = mrope_positions(types, {"image": [Grid(1, 2, 3, 1.0, "side")]}, attention_mask=None)
    assert positions[0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5]
    assert positions[1, 0].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5]
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5]
    assert deltas.tolist() == [[6 - 9]]


def test_images_side_by_side_keep_their_own_grids():
    types = torch.tensor([[1, 1, 1, 1, 1, 1]])
    grids = [Grid(1, 1, 2, 1.0, "side"), Grid(1, 2, 2, 1.0, "side")]
    positions, _ = mrope_positions(types, {"image": grids}, attention_mask=None)
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 2, 3]


def test_grids_that_do_not_fit_the_placeholders_are_refused():
    with pytest.raises(ValueError, match="do not match its grid"):
        mrope_positions(torch.tensor([[0, 1, 1, 0]]), {"image": [Grid(1, 2, 2, 1.0, "side")]}, attention_mask=None)


@torch.no_grad()
def test_other_sources_advance_in_one_dimension_beside_a_grid():
    """Sound from a Qwen2-Audio source over Qwen2-VL's language model."""
    vision, audio = tiny_model("qwen2_vl"), tiny_model("qwen2_audio", 1)
    composed = compose(
        vision,
        {"sees": vision, "hears": audio},
        {"sees": ["image"], "hears": ["audio"]},
        {"image": IMAGE, "audio": AUDIO},
    )
    heard, seen = tiny_inputs("qwen2_audio", audio), tiny_inputs("qwen2_vl", vision)
    count = int((heard["input_ids"] == AUDIO).sum())
    ids = torch.tensor([[1, *[AUDIO] * count, 5, START, *[IMAGE] * 6, END, 7]])
    media = {f"hears__{k}": heard[k] for k in ("input_features", "feature_attention_mask")}
    media |= {f"sees__{k}": seen[k] for k in ("pixel_values", "image_grid_thw")}
    types = type_ids(composed.model.ids, ids)
    positions, _ = composed.model.rope_positions(types, composed.model.media_inputs(media), None)
    before = count + 3
    assert positions[0, 0, :before].tolist() == list(range(before))
    assert positions[1, 0, before : before + 6].tolist() == [before] * 3 + [before + 1] * 3
    assert composed(input_ids=ids, **media).logits.isfinite().all()


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_turns_over_a_cache_count_on(model_type):
    native, composed, inputs, mine = one_source(model_type)
    ids = inputs["input_ids"]
    media = {key: value for key, value in mine.items() if "__" in key}
    images = {key: value for key, value in media.items() if "video" not in key}
    videos = {key: value for key, value in media.items() if "video" in key}
    whole = native(**inputs).logits
    cut = int((ids[0] == VIDEO).nonzero()[0]) - 1
    first = composed(input_ids=ids[:, :cut], use_cache=True, **images)
    second = composed(input_ids=ids[:, cut:-2], past_key_values=first.past_key_values, **videos)
    third = composed(input_ids=ids[:, -2:], past_key_values=second.past_key_values)
    joined = torch.cat([first.logits, second.logits, third.logits], dim=1)
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_earlier_call_leaves_nothing_behind():
    """Native classes keep deltas on the model; a text-only call after an image must not see them."""
    _, composed, _, mine = one_source("qwen2_vl")
    ids = torch.tensor([[1, 5, 9, 3]])
    before = composed(input_ids=ids).logits
    composed.generate(**mine, max_new_tokens=2, pad_token_id=0)
    assert torch.equal(composed(input_ids=ids).logits, before)


@torch.no_grad()
def test_grids_over_a_one_dimensional_language_model_fall_back_and_say_so(caplog):
    """Qwen2-VL's image over plain Qwen2 reads the image as a line of tokens."""
    vision, text = tiny_model("qwen2_vl"), tiny_model("qwen2")
    import logging

    from mcompose.modeling.network.composed import logger

    logger.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    logging.getLogger("transformers").propagate = True
    composed = compose(text, {"sees": vision}, {"sees": ["image"]}, {"image": IMAGE})
    logging.getLogger("transformers").propagate = False
    assert "counts positions in one dimension" in caplog.text
    seen = tiny_inputs("qwen2_vl", vision)
    ids = torch.tensor([[1, 5, *[IMAGE] * 6, 7]])
    pixels = {key: seen[key] for key in ("pixel_values", "image_grid_thw")}
    x_BLD = text.get_input_embeddings()(ids.clamp(max=100))
    x_BLD[0, 2:8] = torch.cat(vision.model.get_image_features(**pixels).pooler_output)
    wanted = text.lm_head(text.model(inputs_embeds=x_BLD).last_hidden_state)
    given = {f"sees__{key}": value for key, value in pixels.items()}
    assert torch.equal(composed(input_ids=ids, **given).logits, wanted)


def test_every_mrope_family_is_covered_here():
    kinds = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker")
    assert all(family_of(kind).mrope is not None for kind in kinds)
