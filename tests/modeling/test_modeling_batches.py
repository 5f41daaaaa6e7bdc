"""Batches that mix modalities, miss some, hold several items, and are padded on either side."""

import pytest
import torch
from composed_models import compose, placeholder_rows
from tiny_models import TINY, fill, tiny_model

from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.points.network import PointsForConditionalGeneration

IMAGE, VIDEO, AUDIO, POINTS = 1000, 1001, 1002, 1003
IDS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO, "points": POINTS}
"""Beyond the embedding table, which has 128 rows."""


@pytest.fixture(scope="module")
def natives():
    text = TINY["llava"]().get_text_config().to_dict()
    points = PointsForConditionalGeneration(PointsConfig(text_config=text, points_config={"hidden_size": 16})).eval()
    fill(points, 3)
    return {
        "sees": tiny_model("llava", 0),
        "watches": tiny_model("video_llava", 1),
        "hears": tiny_model("voxtral", 2),
        "feels": points,
    }


@pytest.fixture(scope="module")
def four(natives):
    modalities = {"sees": ["image"], "watches": ["video"], "hears": ["audio"], "feels": ["points"]}
    return compose(natives["sees"], natives, modalities, IDS)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def media(**counts):
    """So many items of each modality, each different."""
    made = {
        "image": ("sees__pixel_values", lambda n: noise(n, 3, 28, 28)),
        "video": ("watches__pixel_values_videos", lambda n: noise(n, 8, 3, 28, 28, seed=1)),
        "audio": ("hears__input_features", lambda n: noise(n, 8, 80, seed=2)),
        "points": ("feels__points", lambda n: noise(n, 20, 3, seed=3)),
    }
    return {made[modality][0]: made[modality][1](count) for modality, count in counts.items()}


IM, VI, AU, PO = [IMAGE] * 4, [VIDEO] * 40, [AUDIO] * 10, [POINTS] * 4


@torch.no_grad()
def test_features_are_the_sources_own(four, natives):
    given = media(image=2, video=1, audio=1, points=2)
    assert torch.equal(
        four.model.get_image_features(given["sees__pixel_values"]).pooler_output,
        torch.cat(list(natives["sees"].get_image_features(given["sees__pixel_values"]).pooler_output)),
    )
    audio = natives["hears"].get_audio_features(given["hears__input_features"]).pooler_output
    assert torch.equal(four.model.get_audio_features(given["hears__input_features"]).pooler_output, audio)
    cloud = natives["feels"].model.get_points_features(given["feels__points"]).pooler_output.flatten(0, 1)
    assert torch.equal(four.model.get_points_features(given["feels__points"]).pooler_output, cloud)
    video = natives["watches"].model.get_video_features(given["watches__pixel_values_videos"]).pooler_output
    mine = four.model.get_video_features(given["watches__pixel_values_videos"]).pooler_output
    assert torch.equal(mine, video.reshape(-1, 32))


@torch.no_grad()
def test_every_feature_lands_on_its_own_placeholder(four):
    """The reference embeds the text by hand and writes each item's vectors with a loop."""
    given = media(image=2, audio=1, points=1)
    row = [1, *IM, 7, *AU, 8, *IM, 9, *PO, 3]
    table = four.get_input_embeddings().weight
    vectors = {
        IMAGE: list(four.model.get_image_features(given["sees__pixel_values"]).pooler_output),
        AUDIO: list(four.model.get_audio_features(given["hears__input_features"]).pooler_output),
        POINTS: list(four.model.get_points_features(given["feels__points"]).pooler_output),
    }
    x_LD = torch.stack([vectors[index].pop(0) if index in vectors else table[index] for index in row])
    assert not any(vectors.values())
    wanted = four.lm_head(four.model.language_model(inputs_embeds=x_LD[None]).last_hidden_state)
    assert torch.equal(four(input_ids=torch.tensor([row]), **given).logits, wanted)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_with_different_media_are_what_they_are_alone(four, side):
    rows = [[1, *IM, 5, *VI, 6], [1, 2, 3], [1, *AU, *IM, *IM, 4], [2, *PO, 9]]
    given = media(image=3, video=1, audio=1, points=1)
    ids, mask = placeholder_rows(60, *rows, side=side)
    together = four(input_ids=ids, attention_mask=mask, **given).logits
    images = given["sees__pixel_values"]
    alone = [
        {**given, "sees__pixel_values": images[:1], "hears__input_features": None, "feels__points": None},
        {},
        {"sees__pixel_values": images[1:], "hears__input_features": given["hears__input_features"]},
        {"feels__points": given["feels__points"]},
    ]
    for index, (row, inputs) in enumerate(zip(rows, alone, strict=True)):
        single = four(input_ids=torch.tensor([row]), **inputs).logits[0]
        torch.testing.assert_close(together[index][mask[index].bool()], single, rtol=1e-5, atol=1e-5)


def test_counts_that_do_not_match_are_refused(four):
    ids = torch.tensor([[1, *IM, 5]])
    with pytest.raises(ValueError, match="4 image placeholder tokens and 8 image features"):
        four(input_ids=ids, **media(image=2))
    with pytest.raises(ValueError, match="4 image placeholder tokens and no image"):
        four(input_ids=ids)


def test_a_modality_that_nobody_serves_is_refused(natives):
    model = compose(natives["sees"], {"sees": natives["sees"]}, {"sees": ["image"]}, {"image": IMAGE})
    with pytest.raises(ValueError, match="No source of this composition serves audio; it has image"):
        model.model.get_audio_features(noise(1, 8, 80))


@torch.no_grad()
def test_embeddings_instead_of_ids_go_by_token_types(four):
    row = [1, *IM, 5, *AU, 6]
    given = media(image=1, audio=1)
    ids = torch.tensor([row])
    types = torch.tensor([[{IMAGE: 1, AUDIO: 3}.get(index, 0) for index in row]])
    x_BLD = four.get_input_embeddings()(ids.masked_fill(types > 0, 0))
    from_embeds = four(inputs_embeds=x_BLD, mm_token_type_ids=types, **given).logits
    assert torch.equal(from_embeds, four(input_ids=ids, **given).logits)


@torch.no_grad()
def test_generation_repeats_items_with_their_rows(four):
    """With two images in a row, repeating pixels row by row would mix them up between beams."""
    ids, mask = placeholder_rows(16, [1, *IM, 5, *IM, 6], [1, *IM, 7], side="left")
    given = media(image=3)
    asked = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    beams = four.generate(ids, attention_mask=mask, **given, **asked, num_beams=3, num_return_sequences=3)
    assert beams.shape == (6, 20)
    sums = {}
    for row, inputs in ((0, given["sees__pixel_values"][:2]), (1, given["sees__pixel_values"][2:])):
        single = four.generate(
            ids[row : row + 1], attention_mask=mask[row : row + 1], sees__pixel_values=inputs, **asked,
            num_beams=3, num_return_sequences=3,
        )  # fmt: skip
        sums[row] = single
    assert torch.equal(beams, torch.cat([sums[0], sums[1]]))


@torch.no_grad()
def test_caches_do_not_change_what_is_said(four):
    ids, mask = placeholder_rows(30, [1, *IM, 5, *AU, 6], [1, *AU, 7], side="left")
    given = media(image=1, audio=2)
    asked = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    asked |= {"return_dict_in_generate": True, "output_logits": True}
    plain = four.generate(ids, attention_mask=mask, **given, **asked)
    for other in ({"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        again = four.generate(ids, attention_mask=mask, **given, **asked, **other)
        assert torch.equal(again.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(again.logits), torch.stack(plain.logits), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_samples_of_one_prompt_see_the_same_media(four):
    """The features are repeated with the prompt, so both prefixes have equal logits."""
    ids = torch.tensor([[1, *IM, 5]])
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        out = four.generate(
            ids, **media(image=1), do_sample=True, num_return_sequences=2, max_new_tokens=1, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    assert torch.equal(out.logits[0][0], out.logits[0][1])
    torch.testing.assert_close(out.logits[0][0], four(input_ids=ids, **media(image=1)).logits[0, -1])


def test_misspelt_inputs_are_refused_by_generate(four):
    with pytest.raises(ValueError, match="sees__pixel_valuse"):
        four.generate(torch.tensor([[1, 2]]), sees__pixel_valuse=noise(1, 3, 28, 28), max_new_tokens=1)


def test_placeholders_can_never_be_generated(four):
    assert four.lm_head.weight.shape[0] == four.get_input_embeddings().weight.shape[0] == 128
    assert min(IDS.values()) >= 128


def test_encoders_are_found_by_modality(four):
    assert four.get_encoder("audio") is four.model.towers["hears"]
    assert four.get_encoder("points") is four.model.towers["feels"]
    assert four.get_decoder() is four.model.language_model
