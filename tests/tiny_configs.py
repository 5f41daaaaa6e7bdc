"""Configs of the tiny models: one per family, hidden size 32, two layers, 128 tokens.

Plain dictionaries, so that nothing heavy is imported: ``RAW[model_type]`` is what a ``config.json`` would hold.
"""

from __future__ import annotations

from typing import Any

IMAGE, VIDEO, AUDIO = 120, 121, 122
"""Placeholder ids in all tiny models."""

VISION_START, VISION_END, AUDIO_START, AUDIO_END = 123, 124, 125, 126
TOKENS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAIN = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512}
TEXT = {**WIDTH, **PLAIN, "num_key_value_heads": 2, "head_dim": 8}
MROPE = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [1, 1, 2]}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    """A small language model's config."""
    return {"model_type": model_type, **TEXT, **changes}


def clip(model_type: str = "clip_vision_model", **changes: Any) -> dict[str, Any]:
    """A small image encoder's config: 28 pixels, patches of 14."""
    return {"model_type": model_type, **WIDTH, "image_size": 28, "patch_size": 14, "projection_dim": 32, **changes}


_LLAVA = {"text_config": text("llama"), "vision_config": clip(), "image_token_index": IMAGE, "vision_feature_layer": -1}
_SIGLIP = clip("siglip_vision_model", vision_use_head=False)
_NEXT = {**_LLAVA, "image_grid_pinpoints": [[28, 56], [56, 28]], "image_seq_length": 4}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_WINDOWED = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32, "patch_size": 4,
    "window_size": 16, "fullatt_block_indexes": [1],
}  # fmt: skip
_WHISPER = {
    "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
    "max_source_positions": 40,
}  # fmt: skip
_SOUND = {**WIDTH, "num_mel_bins": 8, "max_source_positions": 40}

RAW: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "vipllava": {**_LLAVA, "vision_feature_layer": [-1, -2], "vision_feature_layers": [-1, -2]},
    "video_llava": {**_LLAVA, "video_token_index": VIDEO, "image_seq_length": 5, "video_seq_length": 40},
    "llava_next": _NEXT,
    "llava_next_video": {**_NEXT, "video_token_index": VIDEO},
    "llava_onevision": {
        **_NEXT, "text_config": text("qwen2"), "vision_config": _SIGLIP, "video_token_index": VIDEO,
        "vision_feature_select_strategy": "full",
    },
    "internvl": {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "image_seq_length": 4,
        "vision_config": {**WIDTH, "model_type": "internvl_vision", "image_size": [56, 56], "patch_size": [14, 14]},
    },
    "got_ocr2": {
        "text_config": text("qwen2"), "image_token_index": IMAGE, "image_seq_length": 1,
        "vision_config": {
            **WIDTH, "image_size": 128, "patch_size": 16, "output_channels": 8, "global_attn_indexes": [1],
            "window_size": 4, "mlp_dim": 64,
        },
    },
    "paligemma": {
        "text_config": text("gemma"), "vision_config": _SIGLIP, "image_token_index": IMAGE, "projection_dim": 32,
        "vocab_size": 128, "hidden_size": 32,
    },
    "gemma3": {
        "text_config": text("gemma3_text", sliding_window=32, layer_types=["sliding_attention", "full_attention"]),
        "vision_config": {**_SIGLIP, "image_size": 56}, "image_token_index": IMAGE, "mm_tokens_per_image": 4,
        "boi_token_index": VISION_START, "eoi_token_index": VISION_END,
    },
    "mistral3": {
        "text_config": text("mistral"), "image_token_index": IMAGE, "spatial_merge_size": 2,
        "vision_config": {**WIDTH, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8},
    },
    "qwen2_vl": {
        **_QWEN_IDS, "text_config": text("qwen2_vl_text", rope_parameters=MROPE),
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2,
        },
    },
    "qwen2_5_vl": {
        **_QWEN_IDS, "text_config": text("qwen2_5_vl_text", rope_parameters=MROPE), "vision_config": _WINDOWED,
    },
    "qwen3_vl": {
        **_QWEN_IDS, "text_config": text("qwen3_vl_text", rope_parameters=MROPE),
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
    },
    "qwen2_5_omni_thinker": {
        "image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": AUDIO,
        "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
        "audio_start_token_id": AUDIO_START, "audio_end_token_id": AUDIO_END,
        "text_config": text("qwen2_5_omni_text", rope_parameters=MROPE), "vision_config": _WINDOWED,
        "audio_config": {**_WHISPER, "n_window": 8, "output_dim": 32},
    },
    "qwen2_audio": {
        "text_config": text("qwen2"), "audio_token_index": AUDIO,
        "audio_config": {"model_type": "qwen2_audio_encoder", **_WHISPER},
    },
    "voxtral": {
        "text_config": text("llama"), "audio_token_id": AUDIO, "hidden_size": 32,
        "audio_config": {"model_type": "voxtral_encoder", **_SOUND, "intermediate_size": 128},
    },
    "granite_speech": {
        "text_config": text("granite"), "audio_token_index": AUDIO, "has_lora_adapter": False, "window_size": 6,
        "downsample_rate": 2,
        "encoder_config": {
            "input_dim": 8, "num_layers": 2, "hidden_dim": 32, "feedforward_mult": 2, "num_heads": 4, "dim_head": 8,
            "output_dim": 10, "context_size": 12, "max_pos_emb": 24, "conv_kernel_size": 3,
        },
        "projector_config": {
            **WIDTH, "model_type": "blip_2_qformer", "encoder_hidden_size": 32, "cross_attention_frequency": 1,
        },
    },
    "audioflamingo3": {"text_config": text("qwen2"), "audio_token_id": AUDIO, "audio_config": _SOUND},
    "glmasr": {
        "text_config": text("llama"), "audio_token_id": AUDIO,
        "audio_config": {**_SOUND, "num_key_value_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64},
    },
    "qwen3_asr": {
        "text_config": text("qwen3"), "audio_token_id": AUDIO, "timestamp_token_id": 127,
        "audio_config": {**_WHISPER, "n_window_infer": 100, "output_dim": 32, "downsample_hidden_size": 8},
    },
    "video_llama_3": {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "video_token_id": VIDEO,
        "vision_config": {**WIDTH, "patch_size": 4},
    },
    "ovis2": {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "vocab_size": 128, "hidden_size": 32,
        "visual_indicator_token_ids": [110, 111, 112, 113, 114],
        "vision_config": {**WIDTH, "image_size": 56, "patch_size": 14, "vocab_size": 40, "hidden_stride": 2},
    },
    "idefics2": {
        "text_config": text("mistral"), "image_token_id": IMAGE,
        "vision_config": {**WIDTH, "image_size": 28, "patch_size": 14},
        "perceiver_config": {
            "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
            "resampler_head_dim": 8, "num_key_value_heads": 2,
        },
    },
    "idefics3": {
        "text_config": text("llama"), "image_token_id": IMAGE, "scale_factor": 2,
        "vision_config": {**WIDTH, "image_size": 56, "patch_size": 14},
    },
    "deepseek_vl": {"text_config": text("llama"), "image_token_id": IMAGE, "vision_config": _SIGLIP},
    "aria": {
        "text_config": text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        "image_token_index": IMAGE,
        "vision_config": {**WIDTH, "model_type": "idefics3_vision", "image_size": 28, "patch_size": 14},
        "projector_patch_to_query_dict": {"4": 3},
    },
    "phi4_multimodal": {
        **TEXT,
        "vision_config": {
            **WIDTH, "image_size": 56, "crop_size": 56, "patch_size": 14, "image_token_id": IMAGE,
        },
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 4, "input_size": 80,
            "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32,
            "audio_token_id": AUDIO,
        },
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0},
    },
}  # fmt: skip
RAW["smolvlm"] = RAW["idefics3"]

TEXT_ONLY = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "smollm3")
RAW.update({model_type: dict(TEXT) for model_type in TEXT_ONLY})
