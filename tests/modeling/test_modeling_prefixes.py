"""Learned vectors around media items: their tokens, their places, and that zeros of them are still positions."""

import numpy as np
import pytest
import torch
from composed_folders import tiny_tokenizer
from PIL import Image
from routed_models import PREFIXES, batch, masks_of, plain, routed
from tiny_configs import AUDIO, IMAGE
from tiny_processors import idefics3, llava, qwen2_audio

from mcompose.modeling import ComposedProcessor, add_placeholders, add_prefixes, build_processor, prefix_fields
from mcompose.modeling.network.placement import embed_text

COUNTS = {"prefix_tokens": {"image": 2, "audio": 1}, "suffix_tokens": {"image": 3}}


def image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (56, 84, 3), dtype=np.uint8))


def processor(native=None, model_type="llava"):
    tokenizer = tiny_tokenizer()
    sources = {
        "sees": {"model_type": model_type, "modalities": ["image"]},
        "hears": {"model_type": "qwen2_audio", "modalities": ["audio"]},
    }
    add_placeholders(tokenizer, ["image", "audio"])
    fields = prefix_fields(tokenizer, **COUNTS)
    counts = {key: fields[key] for key in COUNTS}
    made = build_processor(tokenizer, sources, processors={"sees": native or llava(), "hears": qwen2_audio()}, **counts)
    return made, fields


def test_every_item_is_wrapped_also_side_by_side():
    made, fields = processor()
    out = made(text=["a <image><image> b", "c"], images=[image(), image(1)])
    before, after = fields["prefix_token_ids"]["image"], fields["suffix_token_ids"]["image"]
    middle = [made.ids["image"]] * 4
    item = [before] * 2 + middle + [after] * 3
    words = made.tokenizer.convert_tokens_to_ids(["a", "b"])
    assert out["input_ids"][0].tolist() == [words[0], *item, *item, words[1]]
    assert out["mm_token_type_ids"].tolist() == [[0, *[1] * 18, 0], [0] * 20]


def test_marks_of_a_family_stay_inside():
    made, fields = processor(idefics3(), "idefics3")
    row = made(text="a <image> b", images=image())["input_ids"][0].tolist()
    before, after = fields["prefix_token_ids"]["image"], fields["suffix_token_ids"]["image"]
    assert row[1:3] == [before] * 2
    assert row[-4:-1] == [after] * 3
    assert made.ids["image"] in row[3:-4]


def test_sounds_have_vectors_of_their_own():
    made, fields = processor()
    out = made(text="<audio> <image>", audio=np.zeros(800, np.float32), images=image(), sampling_rate=8000)
    row, types = out["input_ids"][0].tolist(), out["mm_token_type_ids"][0].tolist()
    assert row[0] == fields["prefix_token_ids"]["audio"]
    assert row[1] == made.ids["audio"]
    assert types.count(3) == row.count(made.ids["audio"]) + 1
    assert types.count(1) == row.count(made.ids["image"]) + 5


def test_the_processor_is_saved_with_them(tmp_path):
    made, _ = processor()
    made.save_pretrained(tmp_path)
    again = ComposedProcessor.from_pretrained(tmp_path)
    text = "a <image> <audio> b"
    given = {"images": image(), "audio": np.zeros(800, np.float32), "sampling_rate": 8000}
    assert torch.equal(again(text=text, **given)["input_ids"], made(text=text, **given)["input_ids"])


def test_truncating_a_suffix_is_refused():
    made, _ = processor()
    with pytest.raises(ValueError, match="Truncation cut image_suffix placeholders"):
        made(text="<image>", images=image(), truncation=True, max_length=8)


def test_a_tokenizer_without_the_tokens_is_refused():
    tokenizer = tiny_tokenizer()
    add_placeholders(tokenizer, ["image"])
    entry = {"sees": {"model_type": "llava", "modalities": ["image"]}}
    with pytest.raises(ValueError, match="no '<image_prefix>'"):
        build_processor(tokenizer, entry, processors={"sees": llava()}, prefix_tokens={"image": 1})


@torch.no_grad()
def test_what_the_language_model_reads_is_the_vectors_around_the_features():
    """Built here from the towers' features, item by item."""
    model, inputs = routed("dense", prefixes=True)
    model.model.specs = {}  # only the inputs are looked at
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    core = model.model
    made = core.encode_media(core.media_inputs(inputs))
    items = {"image": list(made["image"].x_ND.chunk(3)), "audio": list(made["audio"].x_ND.chunk(2))}
    around = {
        "image": (core.prefix_tokens["image"], core.suffix_tokens["image"]),
        "audio": (core.prefix_tokens["audio"], core.prefix_tokens["audio"][:0]),
    }
    for row, ids in zip(seen[0], inputs["input_ids"], strict=True):
        wanted, index = [], 0
        starts = {PREFIXES["prefix_token_ids"]["image"]: "image", PREFIXES["prefix_token_ids"]["audio"]: "audio"}
        while index < len(ids):
            modality = starts.get(int(ids[index]))
            if modality is None:
                wanted.append(embed_text(core.get_input_embeddings(), ids[index : index + 1], []))
                index += 1
                continue
            before, after = around[modality]
            wanted += [before, items[modality].pop(0), after]
            index += sum(len(piece) for piece in wanted[-3:])
        assert torch.equal(torch.cat(wanted), row)


@torch.no_grad()
def test_new_vectors_are_zero_and_of_the_models_dtype():
    model, *_ = plain(dtype=torch.bfloat16)
    add_prefixes(model, **PREFIXES)
    assert model.model.prefix_tokens["image"].shape == (2, 32)
    assert model.model.prefix_tokens["image"].dtype == torch.bfloat16
    assert not any(p.any() for n, p in model.named_parameters() if "fix_tokens." in n)
    assert model.config.suffix_tokens == {"image": 1}


def test_vectors_are_learnt():
    model, inputs = routed("dense", prefixes=True)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100)).loss.backward()
    assert model.model.prefix_tokens["audio"].grad.abs().sum() > 0
    assert model.model.suffix_tokens["image"].grad.abs().sum() > 0


@torch.no_grad()
def test_beams_repeat_the_vectors_with_their_rows():
    model, inputs = routed("mixed", prefixes=True)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    one = model.generate(**inputs, **options)
    many = model.generate(**inputs, **options, num_beams=3, num_return_sequences=3)
    scores = model(**inputs).logits[:, -1]
    assert torch.equal(one[:, inputs["input_ids"].shape[1]], scores.argmax(-1))
    assert many.shape[0] == 12
    alone = {"input_ids": inputs["input_ids"][3:4], "attention_mask": inputs["attention_mask"][3:4]}
    alone["hears__input_features"] = inputs["hears__input_features"][1:2]
    assert torch.equal(model.generate(**alone, **options, num_beams=3, num_return_sequences=3)[:, -4:], many[9:, -4:])


@torch.no_grad()
def test_positions_without_ids_are_refused():
    model, inputs = routed("dense", prefixes=True)
    ids = inputs.pop("input_ids")
    own = [IMAGE, AUDIO, 300, 301, 302]
    embeds = embed_text(model.get_input_embeddings(), ids, own)
    masks = masks_of(ids)
    types = torch.where(masks["image"], 1, 0) + torch.where(masks["audio"], 3, 0)
    with pytest.raises(ValueError, match="pass input_ids"):
        model(inputs_embeds=embeds, mm_token_type_ids=types, **inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_tokens": {"video": 1}}, "no source of this composition serves it"),
        ({"prefix_tokens": {"image": 0}}, "needs a number of prefix vectors"),
        ({"prefix_token_ids": {}}, "needs a number of prefix vectors and a prefix token id"),
        ({"prefix_token_ids": {"image": IMAGE, "audio": 301}}, "is taken"),
        ({"suffix_token_ids": {"image": 300}}, "is taken"),
    ],
)
def test_fields_that_cannot_work_are_refused(changes, message):
    model, *_ = plain()
    with pytest.raises(ValueError, match=message):
        add_prefixes(model, **{**PREFIXES, **changes})


def test_the_batch_of_these_tests_has_two_images_side_by_side():
    model, sees, hears = plain()
    ids = batch(model, sees, hears, prefixes=True)["input_ids"][2].tolist()
    assert ids[ids.index(302) + 1] == 300
