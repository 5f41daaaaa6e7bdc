"""The processor: placeholders become what each source makes of its media, in the composition's own ids."""

import importlib.util

import numpy as np
import pytest
import torch
import transformers
from composed_folders import read_json, tiny_tokenizer, write_folder
from composed_models import compose
from PIL import Image
from tiny_models import TINY, fill, tiny_model
from tiny_processors import (
    audioflamingo3,
    deepseek_vl,
    gemma3,
    idefics2,
    idefics3,
    llava,
    llava_next,
    paligemma,
    qwen2_audio,
    write_qwen2_vl,
)  # fmt: skip

from mcompose.modeling import ComposedProcessor, add_placeholders, build_processor, structure_ids, write_processor
from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.points.network import PointsForConditionalGeneration
from mcompose.modeling.points.processing import PointsProcessor


def image(seed=0, width=84, height=56):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seed=0, samples=1000):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def cloud(seed=0, points=50):
    return np.random.default_rng(seed).standard_normal((points, 3)).astype(np.float32)


def composed(model_type, native, *, modality="image", tokenizer=None):
    """A processor with one source and a tokenizer of its own."""
    tokenizer = tokenizer or tiny_tokenizer()
    add_placeholders(tokenizer, [modality])
    sources = {"only": {"model_type": model_type, "modalities": [modality]}}
    return build_processor(tokenizer, sources, processors={"only": native})


def native_counts(outputs, token_id):
    return [int((row == token_id).sum()) for row in torch.as_tensor(outputs["input_ids"])]


def test_llava_rows_are_the_natives():
    native = llava()
    mine = composed("llava", native, tokenizer=tiny_tokenizer("<image>"))
    texts = ["USER : <image> what is it ? ASSISTANT :", "<image> a <image> b"]
    images = [image(1), image(2), image(3)]
    wanted = native(text=texts, images=images, return_tensors="pt", padding=True)
    made = mine(text=texts, images=images)
    assert torch.equal(made["input_ids"], wanted["input_ids"])
    assert torch.equal(made["attention_mask"], wanted["attention_mask"])
    assert torch.equal(made["only__pixel_values"], wanted["pixel_values"])
    assert torch.equal(made["mm_token_type_ids"], (wanted["input_ids"] == mine.ids["image"]).long())


@pytest.mark.parametrize(
    ("model_type", "build", "text_token", "media_token"),
    [
        ("llava_next", llava_next, "<image>", "<image>"),
        ("gemma3", gemma3, "<start_of_image>", "<image_soft_token>"),
        ("paligemma", paligemma, "<image>", "<image>"),
        ("idefics2", idefics2, "<image>", "<image>"),
        ("idefics3", idefics3, "<image>", "<image>"),
        ("deepseek_vl", deepseek_vl, "<image_placeholder>", "<image_placeholder>"),
    ],
)
def test_counts_and_tensors_are_the_natives(model_type, build, text_token, media_token):
    native = build()
    mine = composed(model_type, native)
    rows = [["<image> a", "b <image>"], [image(1), image(2, width=56)]]
    asked = [row.replace("<image>", text_token) for row in rows[0]]
    wanted = native(text=asked, images=[[one] for one in rows[1]], return_tensors="pt", padding=True)
    made = mine(text=rows[0], images=rows[1])
    index = native.tokenizer.convert_tokens_to_ids(media_token)
    assert native_counts(made, mine.ids["image"]) == native_counts(wanted, index)
    for key in ("pixel_values", "image_sizes", "pixel_attention_mask"):
        assert (key in wanted) == (f"only__{key}" in made)
        if key in wanted:
            assert torch.equal(made[f"only__{key}"], wanted[key])


def test_marks_that_the_tokenizer_knows_are_kept_in_place():
    native = idefics3()
    known = tiny_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>",
                           "<row_2_col_1>", "<row_2_col_2>")  # fmt: skip
    mine = composed("idefics3", native, tokenizer=known)
    wanted = native(text=["a <image> b"], images=[[image(1)]], return_tensors="pt")
    made = mine(text="a <image> b", images=image(1))
    theirs = native.tokenizer.convert_ids_to_tokens(wanted["input_ids"][0])
    assert mine.tokenizer.convert_ids_to_tokens(made["input_ids"][0]) == theirs


def test_marks_that_the_tokenizer_lacks_are_left_out():
    mine = composed("idefics3", idefics3())
    made = mine(text="a <image> b", images=image(1))
    tokens = mine.tokenizer.convert_ids_to_tokens(made["input_ids"][0])
    assert set(tokens) == {"a", "<image>", "b"}


@pytest.mark.parametrize(("model_type", "build", "token"), [
    ("qwen2_audio", qwen2_audio, "<|AUDIO|>"), ("audioflamingo3", audioflamingo3, "<sound>"),
])  # fmt: skip
def test_sounds_expand_as_their_source_counts(model_type, build, token):
    native = build()
    mine = composed(model_type, native, modality="audio")
    sounds = [sound(1, 1000), sound(2, 1500)]
    texts = [f"a {token}", f"b {token}"]
    wanted = native(text=texts, audio=sounds, return_tensors="pt", text_kwargs={"padding": True})
    made = mine(text=["a <audio>", "b <audio>"], audio=sounds)
    # Padding texts must not stop the extractor from padding sounds to what the encoder's positions need.
    assert made["only__input_features"].shape[-1] == native.feature_extractor.nb_max_frames
    index = native.tokenizer.convert_tokens_to_ids(token)
    assert native_counts(made, mine.ids["audio"]) == native_counts(wanted, index)
    assert torch.equal(made["only__input_features"], wanted["input_features"])
    assert set(made["mm_token_type_ids"].flatten().tolist()) == {0, 3}
    assert torch.equal(mine(text=["a <audio>", "b <audio>"], audios=sounds)["input_ids"], made["input_ids"])


def test_fences_of_a_family_are_written_when_the_tokenizer_has_them():
    tokenizer = tiny_tokenizer("<|audio_bos|>", "<|audio_eos|>")
    mine = composed("qwen2_audio", qwen2_audio(), modality="audio", tokenizer=tokenizer)
    made = mine(text="a <audio> b", audio=sound())
    tokens = mine.tokenizer.convert_ids_to_tokens(made["input_ids"][0])
    assert tokens[:3] == ["a", "<|audio_bos|>", "<audio>"]
    assert tokens[-2:] == ["<|audio_eos|>", "b"]
    again = mine(text="a <|audio_bos|><audio><|audio_eos|> b", audio=sound())
    assert torch.equal(again["input_ids"], made["input_ids"])


def test_voxtral_needs_its_feature_extractor_only():
    extractor = transformers.WhisperFeatureExtractor(feature_size=8)
    mine = composed("voxtral", extractor, modality="audio")
    long = sound(1, 16000 * 31)
    made = mine(text=["a <audio>", "b <audio>"], audio=[sound(0, 16000), long])
    assert made["only__input_features"].shape == (3, 8, 3000)
    assert native_counts(made, mine.ids["audio"]) == [375, 750]


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image> a", [], r"The text has 1 <image> placeholder\(s\), and 0 image item\(s\) came"),
        ("a", 1, r"0 <image> placeholder\(s\), and 1 image"),
        ("<image> a", 2, r"1 <image> placeholder\(s\), and 2 image"),
        (["<image>", "<image>"], 1, r"2 <image> placeholder\(s\), and 1 image"),
    ],
)
def test_counts_that_do_not_match_are_named(text, images, message):
    mine = composed("llava", llava())
    with pytest.raises(ValueError, match=message):
        mine(text=text, images=[image(k) for k in range(images or 0)])


def test_a_modality_that_nobody_serves_is_named():
    mine = composed("llava", llava())
    with pytest.raises(ValueError, match="No source of this composition serves audio; it has image"):
        mine(text="<audio> a", audio=sound())
    with pytest.raises(ValueError, match="Pass text"):
        mine(images=image())


def test_truncation_through_placeholders_is_refused():
    mine = composed("llava", llava())
    with pytest.raises(ValueError, match="Truncation cut image placeholders"):
        mine(text="a b <image>", images=image(), truncation=True, max_length=3)


def test_padding_follows_the_tokenizer_and_the_call():
    mine = composed("llava", llava())
    texts, images = ["<image> a b c", "<image>"], [image(1), image(2)]
    assert mine(text=texts, images=images)["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0, 0]
    left = mine(text=texts, images=images, padding_side="left")
    assert left["attention_mask"][1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    lists = mine(text=texts, images=images, padding=False, return_tensors=None)
    assert [len(row) for row in lists["input_ids"]] == [7, 4]


def test_chats_with_content_lists_and_strings_say_the_same():
    mine = composed("llava", llava())
    listed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]
    plain = [{"role": "user", "content": "<image>\nwhat is it ?"}]
    text = mine.apply_chat_template(listed, add_generation_prompt=True)
    assert text == "USER: <image>\nwhat is it ? ASSISTANT:"
    assert mine.apply_chat_template(plain, add_generation_prompt=True) == text
    assert mine.apply_chat_template([listed, plain], add_generation_prompt=True) == [text, text]
    answered = [*plain, {"role": "assistant", "content": "a cat"}]
    assert mine.apply_chat_template(answered) == "USER: <image>\nwhat is it ? ASSISTANT: a cat</s>"


def test_a_chat_that_holds_its_media_is_processed_in_one_call():
    mine = composed("llava", llava())
    held = {"type": "image", "image": image(1)}
    chat = [{"role": "user", "content": [held, {"type": "text", "text": "what"}]}]
    made = mine.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    text = mine.apply_chat_template(chat, add_generation_prompt=True)
    assert torch.equal(made["input_ids"], mine(text=text, images=image(1))["input_ids"])
    assert made["only__pixel_values"].shape == (1, 3, 28, 28)


def test_the_base_models_own_template_is_used_and_its_first_token_not_doubled():
    tokenizer = named_template(tiny_tokenizer(), "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    mine = composed("llava", llava(), tokenizer=tokenizer)
    assert mine.apply_chat_template([{"role": "user", "content": "a b"}]) == "<s>a b"


def named_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def test_unknown_content_entries_are_refused():
    mine = composed("llava", llava())
    with pytest.raises(ValueError, match="type 'smell'"):
        mine.apply_chat_template([{"role": "user", "content": [{"type": "smell"}]}])


def test_decoding_is_the_tokenizers():
    mine = composed("llava", llava())
    ids = mine(text="a b c")["input_ids"]
    assert mine.batch_decode(ids) == ["abc"]
    assert mine.decode(ids[0]) == "abc"


def test_input_names_carry_their_source():
    mine = composed("llava", llava())
    assert mine.model_input_names == ["input_ids", "attention_mask", "mm_token_type_ids", "only__pixel_values"]


def four_natives():
    text = TINY["llava"]().get_text_config().to_dict()
    points = PointsForConditionalGeneration(PointsConfig(text_config=text, points_config={"hidden_size": 16})).eval()
    fill(points, 3)
    return {"sees": tiny_model("llava"), "hears": tiny_model("voxtral", 1), "feels": points}


@pytest.fixture
def mixed(tmp_path):
    """A folder with three sources over one tokenizer, whose placeholders lie beyond the 128 embedding rows."""
    natives = four_natives()
    extractor = transformers.WhisperFeatureExtractor(feature_size=8)
    processors = {
        "sees": llava(),
        "hears": extractor,
        "feels": PointsProcessor(tiny_tokenizer("<points>"), num_points=20),
    }
    tokenizer = tiny_tokenizer(*[f"<extra_{k}>" for k in range(130)])
    write_folder(
        tmp_path / "mixed", natives["sees"], natives,
        modalities={"sees": ["image"], "hears": ["audio"], "feels": ["points"]},
        tokenizer=tokenizer, processors=processors,
    )  # fmt: skip
    return tmp_path / "mixed"


@torch.no_grad()
def test_several_sources_save_load_and_run(mixed):
    from mcompose.modeling import ComposedForConditionalGeneration

    processor = ComposedProcessor.from_pretrained(mixed)
    model, report = ComposedForConditionalGeneration.from_pretrained(mixed, output_loading_info=True)
    assert not any(report.values())
    assert min(processor.ids.values()) >= 128
    config = read_json(mixed / "config.json")
    assert {f"{k}_token_id": v for k, v in processor.ids.items()}.items() <= config.items()
    texts = ["<image> a <points> b", "c", "<points> <image> <image>"]
    made = processor(text=texts, images=[image(k) for k in range(3)], points=[cloud(1), cloud(2)])
    assert made["feels__points"].shape == (2, 20, 3)
    assert set(made["mm_token_type_ids"].flatten().tolist()) == {0, 1, 4}
    together = model(**made).logits
    alone = model(**processor(text=texts[2], images=[image(1), image(2)], points=cloud(2))).logits[0]
    torch.testing.assert_close(together[2][made["attention_mask"][2].bool()], alone, rtol=1e-5, atol=1e-5)
    out = model.generate(**processor(text=texts[0], images=image(0), points=cloud(1)), max_new_tokens=3, pad_token_id=3)
    assert (out[:, -3:] < 128).all()
    processor.save_pretrained(mixed.parent / "again")
    again = ComposedProcessor.from_pretrained(mixed.parent / "again")
    assert torch.equal(again(text=texts[1])["input_ids"], processor(text=texts[1])["input_ids"])
    assert again.sources == processor.sources


def test_nested_media_are_read_in_order():
    mine = composed("llava", llava())
    texts = ["<image> <image>", "<image>"]
    flat = mine(text=texts, images=[image(1), image(2), image(3)])
    nested = mine(text=texts, images=[[image(1), image(2)], [image(3)]])
    assert torch.equal(flat["only__pixel_values"], nested["only__pixel_values"])


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="shows what happens without torchvision"
)
def test_images_of_a_source_work_without_torchvision_and_its_videos_say_why_not(tmp_path):
    """transformers' video processors need torchvision; the same source's images do not."""
    tokenizer = tiny_tokenizer("<|vision_start|>", "<|vision_end|>")
    add_placeholders(tokenizer, ["image", "video"])
    sources = {"sees": {"model_type": "qwen2_vl", "modalities": ["image", "video"]}}
    source = write_qwen2_vl(tmp_path / "source")
    written = write_processor(tmp_path / "out", tokenizer, sources, folders={"sees": source})
    assert tmp_path / "out/processors/sees/preprocessor_config.json" in written
    mine = ComposedProcessor.from_pretrained(tmp_path / "out")
    made = mine(text="a <image>", images=image(1, width=32, height=16))
    tokens = mine.tokenizer.convert_ids_to_tokens(made["input_ids"][0])
    height, width = made["sees__image_grid_thw"][0, 1:].tolist()
    assert tokens == ["a", "<|vision_start|>", *["<image>"] * (height * width // 4), "<|vision_end|>"]
    with pytest.raises(ValueError, match=r"video processor of source 'sees' cannot be loaded: .*Torchvision"):
        mine(text="a <video>", videos=[np.zeros((4, 16, 16, 3), dtype=np.uint8)])


@torch.no_grad()
def test_what_the_processor_makes_the_model_takes():
    """Through LLaVA-NeXT's tiles and newline vectors: the same logits as native processor and native model."""
    native_model, native = tiny_model("llava_next"), llava_next()
    index = native.tokenizer.convert_tokens_to_ids("<image>")
    native_model.config.image_token_id = native_model.model.config.image_token_id = index
    mine = composed("llava_next", native, tokenizer=tiny_tokenizer("<image>"))
    model = compose(native_model, {"only": native_model}, {"only": ["image"]}, {"image": index})
    texts, images = ["a <image> b", "<image> c"], [image(1), image(2, width=40, height=90)]
    wanted = native_model(**native(text=texts, images=images, return_tensors="pt", padding=True)).logits
    assert torch.equal(model(**mine(text=texts, images=images)).logits, wanted)


def test_structural_tokens_are_added_by_name_and_found_by_the_family():
    """Ovis2's marks get the composition's ids, and its processor's marks then survive as tokens."""
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    theirs = tiny_tokenizer("<image>", "<IMG_ATOM>", *marks)
    config = {"model_type": "ovis2", "visual_indicator_token_ids": theirs.convert_tokens_to_ids(marks)}
    tokenizer = tiny_tokenizer(*[f"<extra_{k}>" for k in range(9)])
    ids = structure_ids(tokenizer, config, source_tokenizer=theirs)
    assert ids == tokenizer.convert_tokens_to_ids(marks) != config["visual_indicator_token_ids"]
    assert structure_ids(tokenizer, {"model_type": "llava"}, source_tokenizer=theirs) is None
    native = transformers.Ovis2Processor(
        transformers.Ovis2ImageProcessor(size={"height": 56, "width": 56}), theirs, image_seq_length=4
    )
    made = composed("ovis2", native, tokenizer=tokenizer)(text="a <image>", images=image(1))
    tokens = tokenizer.convert_ids_to_tokens(made["input_ids"][0])
    assert tokens == ["a", "<IMG_START>", *["<image>"] * 4, "<IMG_GRID>", "<IMG_END>"]


@pytest.mark.parametrize(
    "options",
    [{"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}, {"common_kwargs": {"do_rescale": False}}],
)
def test_settings_of_a_call_reach_the_pictures_processor(options):
    ready = np.random.default_rng(0).random((28, 28, 3)).astype(np.float32)
    native = llava()
    mine = composed("llava", native, tokenizer=tiny_tokenizer("<image>"))
    wanted = native(text="<image> what", images=ready, return_tensors="pt", do_rescale=False)["pixel_values"]
    made = mine(text="<image> what", images=ready, return_tensors="pt", **options)
    torch.testing.assert_close(made["only__pixel_values"], wanted)


def test_settings_of_a_call_reach_the_tokenizer_and_unknown_ones_are_refused():
    mine = composed("llava", llava(), tokenizer=tiny_tokenizer("<image>"))
    options = {"padding": "max_length", "max_length": 32}
    assert len(mine(text=["what is it"], text_kwargs=options)["input_ids"][0]) == 32
    with pytest.raises(TypeError, match="takes 'do_rescael'"):
        mine(text="what", do_rescael=False)


def test_a_callers_own_settings_of_a_chat_stand_above_ours():
    """TRL says `add_special_tokens` itself, beside a template that writes the first token."""
    mine = composed("llava", llava(), tokenizer=tiny_tokenizer("<image>"))
    chat = [{"role": "user", "content": "what is it"}]
    template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}"
    asked = {"chat_template": template, "tokenize": True}
    plain = mine.apply_chat_template(chat, **asked)["input_ids"]
    theirs = mine.apply_chat_template(chat, **asked, processor_kwargs={"add_special_tokens": False})["input_ids"]
    assert torch.equal(torch.as_tensor(plain), torch.as_tensor(theirs))
