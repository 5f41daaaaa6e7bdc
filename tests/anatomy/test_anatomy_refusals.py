"""What cannot be a source is refused with its reason, and what transformers does not know is told by roles, loudly."""

from __future__ import annotations

import re

import pytest

from mcompose.anatomy import EMBEDDING, ENCODER, HEAD, LANGUAGE, PROJECTOR, UNUSED, read_anatomy
from mcompose.errors import AnatomyError

pytestmark = pytest.mark.floor

WEIGHT = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (4, 4)}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mllama"}, "cross-attention"),
        ({"model_type": "fuyu"}, "no encoder"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "whisper"}, "encoder-decoder"),
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "florence2"}, "encoder-decoder"),
        ({"model_type": "blip-2", "text_config": {"model_type": "t5"}}, "'t5' is an encoder-decoder"),
        ({"model_type": "llama", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "idefics"}, "cross-attention"),
        ({"model_type": "git"}, "captioning"),
        ({"model_type": "clip"}, "not have a language model"),
        ({"model_type": "vit"}, "not have a language model"),
        ({"model_type": "phi4mm"}, "low-rank adapter per modality"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"peft_type": "LORA", "model_type": "llama"}, "adapter, not a model"),
        ({"peft_type": "LORA", "base_model_name_or_path": "x"}, "adapter, not a model"),
    ],
)
def test_refusals_say_why(config, words):
    anatomy = read_anatomy(config, {})
    assert re.search(words, anatomy.refusal)


def test_a_refused_checkpoint_still_shows_its_parts():
    anatomy = read_anatomy({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, WEIGHT)
    assert [slot.part for slot in anatomy.slots.values()] == [EMBEDDING, LANGUAGE]
    assert "fp8" in anatomy.refusal


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.layers.0.q_proj.qweight", "model.embed_tokens.weight"], "quantised"),
        (["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"], "only low-rank adapters"),
        (["model.layers.0.q_proj.lora_B.default.weight", "model.embed_tokens.weight"], "low-rank adapters beside"),
    ],
)
def test_quantised_and_adapter_files_are_told_by_their_keys(keys, words):
    assert words in read_anatomy({"model_type": "llama"}, dict.fromkeys(keys, (1,))).refusal


LLAVA_LLAMA = {
    "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "auto_map": {"AutoModel": "evil.Evil"}, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "vocab_size": 100,
}  # fmt: skip


def test_llava_llama_is_split_by_roles_and_said_loudly():
    keys = {
        "model.embed_tokens.weight": (EMBEDDING, "embed_tokens.weight", None),
        "model.layers.1.self_attn.q_proj.weight": (LANGUAGE, "layers.1.self_attn.q_proj.weight", 1),
        "model.layers.1.self_attn.rotary_emb.inv_freq": (UNUSED, "model.layers.1.self_attn.rotary_emb.inv_freq", None),
        "model.norm.weight": (LANGUAGE, "norm.weight", None),
        "lm_head.weight": (HEAD, "lm_head.weight", None),
        "model.mm_projector.0.weight": (PROJECTOR, "mm_projector.0.weight", None),
        "model.image_newline": (PROJECTOR, "image_newline", None),
        "model.vision_tower.vision_tower.vision_model.encoder.layers.5.mlp.fc1.weight": (
            ENCODER, "vision_tower.vision_tower.vision_model.encoder.layers.5.mlp.fc1.weight", 5,
        ),
    }  # fmt: skip
    anatomy = read_anatomy(LLAVA_LLAMA, dict.fromkeys(keys, (1,)))

    assert {key: (slot.part, slot.name, slot.layer) for key, slot in anatomy.slots.items()} == keys
    assert not anatomy.known
    assert "transformers does not know the type 'llava_llama'" in anatomy.warnings[0]
    assert "no code of the checkpoint was run" in anatomy.warnings[0]
    assert anatomy.text_config["model_type"] == "llama"
    assert anatomy.modalities == ("image",)
    assert anatomy.num_layers == 2
    assert not anatomy.refusal


def test_audio_and_video_roles_of_an_unknown_type():
    config = {"model_type": "multimodal", "text_config": {"model_type": "llama", "num_hidden_layers": 1}}
    keys = {
        "language_model.model.embed_tokens.weight": EMBEDDING,
        "language_model.model.layers.0.input_layernorm.weight": LANGUAGE,
        "language_model.lm_head.weight": HEAD,
        "audio_encoder.blocks.3.attn.query.weight": ENCODER,
        "video_tower.layers.0.weight": ENCODER,
        "audio_projection.weight": PROJECTOR,
        "qformer.query_tokens": PROJECTOR,
    }
    anatomy = read_anatomy(config, dict.fromkeys(keys, (1,)))
    assert {key: slot.part for key, slot in anatomy.slots.items()} == keys
    assert anatomy.modalities == ("audio", "video")
    assert (
        anatomy.slots["language_model.model.layers.0.input_layernorm.weight"].name == "layers.0.input_layernorm.weight"
    )


def test_a_key_without_a_role_is_an_error():
    with pytest.raises(
        AnatomyError, match=r"1 of 2 tensors of the unknown type 'llava_llama' have no role: 'zebra\.weight'"
    ):
        read_anatomy(LLAVA_LLAMA, {"model.embed_tokens.weight": (1,), "zebra.weight": (1,)})


def test_an_unknown_type_without_an_embedding_table_is_an_error():
    with pytest.raises(AnatomyError, match="no key names an embedding table"):
        read_anatomy({"model_type": "never_heard_of"}, {"model.layers.0.weight": (1,)})
