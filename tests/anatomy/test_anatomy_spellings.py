"""Old spellings of the Hub, doubled prefixes, wrappers, bases without a head and buffers are read as they should."""

from __future__ import annotations

import pytest

from mcompose.anatomy import EMBEDDING, ENCODER, HEAD, LANGUAGE, PROJECTOR, UNUSED, read_anatomy
from mcompose.errors import AnatomyError

pytestmark = pytest.mark.floor

TEXT = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 128}
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": TEXT}
LANGUAGE_KEYS = {
    "embed_tokens.weight": EMBEDDING,
    "layers.0.self_attn.q_proj.weight": LANGUAGE,
    "layers.1.mlp.down_proj.weight": LANGUAGE,
    "norm.weight": LANGUAGE,
}


def split(config, *keys):
    return {
        key: (slot.part, slot.name, slot.layer)
        for key, slot in read_anatomy(config, dict.fromkeys(keys, (1,))).slots.items()
    }


@pytest.mark.parametrize(
    ("language", "head"),
    [
        ("language_model.model.", "language_model.lm_head."),
        ("model.language_model.", "lm_head."),
        ("language_model.model.model.", "language_model.lm_head."),
        ("model.language_model.model.", "lm_head."),
    ],
)
def test_llava_in_all_spellings(language, head):
    keys = [language + name for name in LANGUAGE_KEYS]
    found = split(LLAVA, *keys, head + "weight")

    assert [found[key][:2] for key in keys] == [(part, name) for name, part in LANGUAGE_KEYS.items()]
    assert found[head + "weight"] == (HEAD, "lm_head.weight", None)
    assert found[language + "layers.1.mlp.down_proj.weight"][2] == 1


@pytest.mark.parametrize(
    "tower", ["vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."]
)
@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_the_extra_vision_model_of_old_towers_is_dropped(tower, kind):
    config = {**LLAVA, "vision_config": {"model_type": kind}}
    key = tower + "encoder.layers.7.mlp.fc1.weight"
    assert split(config, key)[key] == (ENCODER, "vision_tower.encoder.layers.7.mlp.fc1.weight", 7)


@pytest.mark.parametrize("text_type", ["mistral", "qwen2", "gemma", "phi3"])
def test_llava_holds_any_language_model(text_type):
    config = {**LLAVA, "text_config": {"model_type": text_type}}
    anatomy = read_anatomy(config, {"language_model.model.layers.0.self_attn.o_proj.weight": (1,)})
    assert anatomy.text_config["model_type"] == text_type
    assert [slot.name for slot in anatomy.slots.values()] == ["layers.0.self_attn.o_proj.weight"]


def test_newline_and_connector_are_projector():
    config = {"model_type": "llava_next"}
    found = split(
        config, "image_newline", "multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_2.bias"
    )
    assert found["image_newline"] == (PROJECTOR, "image_newline", None)
    assert found["multi_modal_projector.linear_1.bias"] == (PROJECTOR, "multi_modal_projector.linear_1.bias", None)
    assert found["model.multi_modal_projector.linear_2.bias"] == (
        PROJECTOR,
        "multi_modal_projector.linear_2.bias",
        None,
    )


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_vl_in_both_spellings(model_type):
    old = split(
        {"model_type": model_type},
        "model.layers.3.mlp.up_proj.weight",
        "visual.blocks.2.attn.qkv.weight",
        "lm_head.weight",
    )
    new = split(
        {"model_type": model_type},
        "model.language_model.layers.3.mlp.up_proj.weight", "model.visual.blocks.2.attn.qkv.weight", "lm_head.weight",
    )  # fmt: skip
    assert list(old.values()) == list(new.values())
    assert list(old.values()) == [
        (LANGUAGE, "layers.3.mlp.up_proj.weight", 3),
        (ENCODER, "visual.blocks.2.attn.qkv.weight", 2),
        (HEAD, "lm_head.weight", None),
    ]


def test_qwen_vl_with_the_text_settings_at_the_top():
    flat = {
        "model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "tie_word_embeddings": True, "rope_theta": 5e5,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 32, "hidden_size": 1536, "model_type": "qwen2_vl"}, "image_token_id": 151655,
    }  # fmt: skip
    anatomy = read_anatomy(flat, {"model.embed_tokens.weight": (1,)})
    assert anatomy.num_layers == 28
    assert anatomy.text_config["model_type"] == "qwen2_vl_text"
    assert anatomy.text_config["hidden_size"] == 1536
    assert anatomy.text_config["rope_scaling"]["mrope_section"] == [16, 24, 24]
    assert "rope_parameters" not in anatomy.text_config
    assert anatomy.tied
    assert anatomy.placeholders == {"image": 151655, "video": 151656}


def test_omni_is_read_at_its_thinker():
    config = {
        "model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"],
        "thinker_config": {"model_type": "qwen2_5_omni_thinker", "text_config": {"num_hidden_layers": 5}},
    }  # fmt: skip
    anatomy = read_anatomy(
        config,
        dict.fromkeys(
            [
                "thinker.model.layers.4.mlp.up_proj.weight", "thinker.model.embed_tokens.weight",
                "thinker.lm_head.weight",
                "thinker.audio_tower.layers.1.fc1.weight", "thinker.visual.blocks.0.norm1.weight",
                "talker.model.layers.0.mlp.up_proj.weight", "token2wav.code2wav_dit_model.x",
            ],
            (1,),
        ),
    )  # fmt: skip
    assert [(slot.part, slot.name) for slot in anatomy.slots.values()] == [
        (LANGUAGE, "layers.4.mlp.up_proj.weight"), (EMBEDDING, "embed_tokens.weight"), (HEAD, "lm_head.weight"),
        (ENCODER, "audio_tower.layers.1.fc1.weight"), (ENCODER, "visual.blocks.0.norm1.weight"),
        (UNUSED, "talker.model.layers.0.mlp.up_proj.weight"), (UNUSED, "token2wav.code2wav_dit_model.x"),
    ]  # fmt: skip
    assert anatomy.model_type == "qwen2_5_omni_thinker"
    assert anatomy.num_layers == 5
    assert all(slot.reason for slot in anatomy.slots.values() if slot.part == UNUSED)
    assert not [name for name in anatomy.by_name() if name.startswith("talker")]


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite"]
)
def test_text_models_with_and_without_their_head(model_type):
    config = {"model_type": model_type}
    whole = split(config, *("model." + name for name in LANGUAGE_KEYS), "lm_head.weight")
    bare = split(config, *LANGUAGE_KEYS)
    assert list(whole.values())[:-1] == list(bare.values())
    assert [value[:2] for value in bare.values()] == [(part, name) for name, part in LANGUAGE_KEYS.items()]


def test_other_decoders_keep_their_own_names_below_the_decoder():
    found = split(
        {"model_type": "gpt2"}, "transformer.h.3.attn.c_attn.weight", "wte.weight", "h.0.attn.bias", "ln_f.weight"
    )
    assert list(found.values()) == [
        (LANGUAGE, "h.3.attn.c_attn.weight", 3), (EMBEDDING, "wte.weight", None),
        (UNUSED, "h.0.attn.bias", None), (LANGUAGE, "ln_f.weight", None),
    ]  # fmt: skip


def test_buffers_of_old_files_are_dropped_with_a_reason():
    keys = (
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.masked_bias",
    )
    slots = read_anatomy(LLAVA, dict.fromkeys(keys, (1,))).slots
    assert [(slot.part, slot.layer) for slot in slots.values()] == [(UNUSED, None)] * 3
    assert {slot.reason for slot in slots.values()} == {"computed by the model, not learned"}


def test_orphans_are_counted_and_ten_are_listed():
    keys = [f"surprise.{index}.weight" for index in range(12)]
    with pytest.raises(
        AnatomyError, match=r"12 of 13 tensors do not belong to a part of 'llava'.*'surprise\.9\.weight' and 2 more"
    ):
        read_anatomy(LLAVA, dict.fromkeys([*keys, "lm_head.weight"], (1,)))


def test_two_spellings_of_one_tensor_are_an_error():
    keys = ("language_model.model.norm.weight", "model.language_model.norm.weight")
    with pytest.raises(AnatomyError, match=r"two spellings of the same tensor, 'norm\.weight'"):
        read_anatomy(LLAVA, dict.fromkeys(keys, (1,)))


@pytest.mark.parametrize(
    ("config", "keys", "tied"),
    [
        ({"model_type": "qwen2", "tie_word_embeddings": True}, ["model.embed_tokens.weight"], True),
        ({"model_type": "qwen2"}, ["model.embed_tokens.weight", "lm_head.weight"], False),
        ({"model_type": "gemma2"}, ["model.embed_tokens.weight"], True),
        # the files hold a head: it may differ from the table, so it is kept
        ({"model_type": "gemma2"}, ["model.embed_tokens.weight", "lm_head.weight"], False),
        (
            {"model_type": "llava", "text_config": {"tie_word_embeddings": True}},
            ["model.language_model.norm.weight"],
            True,
        ),
        ({"model_type": "gemma3"}, ["language_model.model.embed_tokens.weight"], True),
        ({"model_type": "qwen2", "tie_word_embeddings": False}, ["embed_tokens.weight"], False),
    ],
)
def test_tied_heads(config, keys, tied):
    anatomy = read_anatomy(config, dict.fromkeys(keys, (1,)))
    assert anatomy.tied is tied
    assert anatomy.text_config["tie_word_embeddings"] is tied


def test_defaults_that_a_file_leaves_out_are_filled():
    config = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "image_token_index": 32000,
    }
    anatomy = read_anatomy(config, {})
    assert (anatomy.num_layers, anatomy.text_config["hidden_size"]) == (32, 4096)
    assert "num_key_value_heads" not in anatomy.text_config  # follows from the number of heads
    assert anatomy.placeholders == {"image": 32000}
    assert anatomy.modalities == ("image",)


def test_a_config_without_type_is_an_error():
    with pytest.raises(AnatomyError, match="not have a `model_type`"):
        read_anatomy({"hidden_size": 1}, {})


def test_heads_that_predict_ahead_are_left_out_and_told():
    config = {"model_type": "qwen3_next", "num_hidden_layers": 2, "vocab_size": 128}
    keys = ["model.embed_tokens.weight", "model.layers.1.mlp.gate.weight", "mtp.fc.weight", "mtp.layers.0.norm.weight"]
    anatomy = read_anatomy(config, dict.fromkeys(keys, (1,)))
    assert [anatomy.slots[key].part for key in keys] == [EMBEDDING, LANGUAGE, UNUSED, UNUSED]
    assert any("'mtp.fc.weight' and 1 more tensors are left out" in warning for warning in anatomy.warnings)


def test_layers_behind_the_last_are_left_out_whatever_their_number():
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "vocab_size": 128}
    keys = ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight", "model.layers.2.eh_proj.weight"]
    anatomy = read_anatomy(config, dict.fromkeys(keys, (1,)))
    assert [anatomy.slots[key].part for key in keys] == [EMBEDDING, LANGUAGE, UNUSED]
    assert any("'model.layers.2.eh_proj.weight' is left out" in warning for warning in anatomy.warnings)
