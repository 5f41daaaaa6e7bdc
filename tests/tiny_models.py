"""One tiny model per family: its config, deterministic weights, and inputs that show it something.

``TINY[model_type]()`` is the config, ``tiny_model(model_type)`` the model in float32 with weights that depend on the seed
alone, ``tiny_inputs(model_type, model)`` what a full forward pass takes: text with placeholders, and the media.
``features(model, inputs)`` calls the family's own encoders, and ``media`` picks their arguments out of the inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

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
    "vipllava": {**_LLAVA, "vision_feature_layer": [-1, -2]},
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
        "text_config": text("gemma3_text", sliding_window=32, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]),
        "vision_config": {**_SIGLIP, "image_size": 56}, "image_token_index": IMAGE, "mm_tokens_per_image": 4,
        "boi_token_index": VISION_START, "eoi_token_index": VISION_END,
    },
    "mistral3": {
        "text_config": text("mistral"), "image_token_index": IMAGE, "spatial_merge_size": 2,
        "vision_config": {**WIDTH, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8},
    },
    "qwen2_vl": {
        **_QWEN_IDS, "text_config": text("qwen2_vl_text", rope_parameters=MROPE),
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {**_QWEN_IDS, "text_config": text("qwen2_5_vl_text", rope_parameters=MROPE), "vision_config": _WINDOWED},
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
        "text_config": text("qwen2"), "audio_token_index": AUDIO, "audio_config": {"model_type": "qwen2_audio_encoder", **_WHISPER},
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
        "projector_config": {"model_type": "blip_2_qformer", **WIDTH, "encoder_hidden_size": 32, "cross_attention_frequency": 1},
    },
    "audioflamingo3": {"text_config": text("qwen2"), "audio_token_id": AUDIO, "audio_config": _SOUND},
    "glmasr": {
        "text_config": text("llama"), "audio_token_id": AUDIO,
        "audio_config": {**_SOUND, "num_key_value_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64},
    },
    "qwen3_asr": {
        "text_config": text("qwen3"), "audio_token_id": AUDIO, "timestamp_token_id": 127,
        "audio_config": {**_WHISPER, "n_window": 8, "n_window_infer": 16, "output_dim": 32, "downsample_hidden_size": 8},
    },
    "video_llama_3": {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "video_token_id": VIDEO,
        "vision_config": {**WIDTH, "patch_size": 4},
    },
    "ovis2": {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "visual_indicator_token_ids": [110, 111, 112, 113, 114],
        "vocab_size": 128, "hidden_size": 32,
        "vision_config": {**WIDTH, "image_size": 56, "patch_size": 14, "vocab_size": 40, "hidden_stride": 2},
    },
    "idefics2": {
        "text_config": text("mistral"), "image_token_id": IMAGE, "vision_config": {**WIDTH, "image_size": 28, "patch_size": 14},
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
        "text_config": text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1), "image_token_index": IMAGE,
        "vision_config": {**WIDTH, "model_type": "idefics3_vision", "image_size": 28, "patch_size": 14},
        "projector_patch_to_query_dict": {"4": 3},
    },
    "phi4_multimodal": {
        **TEXT, "vision_config": {**WIDTH, "image_size": 56, "crop_size": 56, "patch_size": 14, "image_token_id": IMAGE},
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

CLASSES = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
}


def _config(model_type: str) -> Callable[[], PreTrainedConfig]:
    return lambda: CONFIG_MAPPING[model_type].from_dict({**RAW[model_type], "model_type": model_type})


TINY: dict[str, Callable[[], PreTrainedConfig]] = {
    model_type: _config(model_type) for model_type in RAW if model_type in CONFIG_MAPPING
}
"""Model type to its tiny config, for all families that the installed transformers has."""

MULTIMODAL = tuple(model_type for model_type in TINY if model_type not in TEXT_ONLY)


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Model in float32 and eval mode; its weights depend on the seed and the parameter's name and shape alone."""
    from mcompose.anatomy.meta import language_classes

    cls = getattr(transformers, CLASSES.get(model_type) or language_classes()[model_type])
    with torch.random.fork_rng():
        model = cls._from_config(TINY[model_type]()).eval()
    fill(model, seed)
    return model


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> None:
    """Writes weights that are neither zero nor one, and keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            centre = 0.0 if name.endswith("bias") else 1.0
            tensor.copy_(centre + 0.1 * noise)
        else:
            tensor.copy_(noise / max(tensor[0].numel(), 1) ** 0.5)
    for name, tensor in sorted(model.named_buffers()):
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def tiny_media(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the family's processor would hand over beside the text, for one item of each modality."""
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return _MEDIA[model_type](noise)


def _square(size: int) -> Callable[[Any], dict[str, torch.Tensor]]:
    return lambda noise: {"pixel_values": noise(1, 3, size, size)}


def _tiles(noise: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": noise(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}


def _tiles_and_frames(noise: Any) -> dict[str, torch.Tensor]:
    return {**_tiles(noise), "pixel_values_videos": noise(1, 2, 3, 28, 28)}


def _patches(noise: Any, *, wide: int = 96) -> dict[str, torch.Tensor]:
    image, video = torch.tensor([[1, 4, 6]]), torch.tensor([[2, 4, 4]])
    return {
        "pixel_values": noise(24, wide), "image_grid_thw": image,
        "pixel_values_videos": noise(32, wide), "video_grid_thw": video,
    }  # fmt: skip


def _llama_patches(noise: Any) -> dict[str, torch.Tensor]:
    media = _patches(noise, wide=48)
    merge = {"image_merge_sizes": torch.tensor([1]), "video_merge_sizes": torch.tensor([2])}
    return {**media, **merge, "video_compression_mask": torch.ones(8, dtype=torch.bool)}


def _mel(frames: int, *, mask: str = "") -> Callable[[Any], dict[str, torch.Tensor]]:
    def make(noise: Any) -> dict[str, torch.Tensor]:
        media = {"input_features": noise(1, 8, frames)}
        return {**media, mask: torch.ones(1, frames, dtype=torch.long)} if mask else media

    return make


def _everything(noise: Any) -> dict[str, torch.Tensor]:
    return {**_patches(noise), **_mel(32, mask="feature_attention_mask")(noise)}


def _masked(size: int) -> Callable[[Any], dict[str, torch.Tensor]]:
    return lambda noise: {
        "pixel_values": noise(1, 1, 3, size, size),
        "pixel_attention_mask": torch.ones(1, 1, size, size, dtype=torch.bool),
    }


_MEDIA: dict[str, Callable[[Any], dict[str, torch.Tensor]]] = {
    **dict.fromkeys(("llava", "vipllava", "paligemma", "deepseek_vl"), _square(28)),
    **dict.fromkeys(("internvl", "gemma3", "ovis2"), _square(56)),
    "got_ocr2": _square(128),
    "mistral3": lambda noise: {**_square(56)(noise), "image_sizes": torch.tensor([[56, 56]])},
    "video_llava": lambda noise: {
        "pixel_values_images": noise(1, 3, 28, 28),
        "pixel_values_videos": noise(1, 8, 3, 28, 28),
    },
    "llava_next": _tiles,
    **dict.fromkeys(("llava_next_video", "llava_onevision"), _tiles_and_frames),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _patches),
    "qwen2_5_omni_thinker": _everything,
    "video_llama_3": _llama_patches,
    "qwen2_audio": _mel(80, mask="feature_attention_mask"),
    "voxtral": _mel(80),
    **dict.fromkeys(("audioflamingo3", "glmasr"), _mel(80, mask="input_features_mask")),
    "qwen3_asr": _mel(48, mask="input_features_mask"),
    "granite_speech": lambda noise: {
        "input_features": noise(1, 12, 8),
        "input_features_mask": torch.ones(1, 6, dtype=torch.bool),
    },
    "idefics2": _masked(28),
    **dict.fromkeys(("idefics3", "smolvlm"), _masked(56)),
    "aria": lambda noise: {**_square(28)(noise), "pixel_mask": torch.ones(1, 28, 28, dtype=torch.bool)},
}


def features(model: PreTrainedModel, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows that the family's own encoders and projector make of the media, per modality, in the order of the text."""
    base = getattr(model, model.base_model_prefix, model)
    found: dict[str, torch.Tensor] = {}
    for modality in ("image", "video", "audio"):
        arguments = _arguments(base, modality, media)
        if arguments:
            with torch.no_grad():
                found[modality] = _rows(_call(base, modality, arguments))
    return found


def _arguments(base: torch.nn.Module, modality: str, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    owned = {
        "image": ("pixel_values", "pixel_values_images", "image_sizes", "image_grid_thw", "image_merge_sizes",
                  "pixel_attention_mask", "pixel_mask"),
        "video": ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask"),
        "audio": ("input_features", "input_features_mask", "feature_attention_mask"),
    }  # fmt: skip
    found = {name: media[name] for name in owned[modality] if name in media}
    return found if any(name.startswith(("pixel_values", "input_features")) for name in found) else {}


def _call(base: Any, modality: str, arguments: dict[str, torch.Tensor]) -> Any:
    if base.config.model_type == "qwen2_audio":
        encoded = base.audio_tower(arguments["input_features"]).last_hidden_state
        return base.multi_modal_projector(encoded)
    function = getattr(base, f"get_{modality}_features")
    if "pixel_values_images" in arguments:
        arguments = {"pixel_values": arguments["pixel_values_images"]}
    known = inspect.signature(function).parameters
    if "input_features_mask" not in known and base.config.model_type == "granite_speech":
        arguments = {"input_features": arguments["input_features"]}
    return function(**arguments)


def _rows(output: Any) -> torch.Tensor:
    value = getattr(output, "pooler_output", output)
    if isinstance(value, torch.Tensor):
        return value.reshape(-1, value.shape[-1])
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in value])


def tiny_inputs(model_type: str, model: PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a full forward pass: one sequence with one item of each modality, and its media."""
    words = torch.randint(3, 100, (12,), generator=torch.Generator().manual_seed(seed + 2)).tolist()
    if model_type in TEXT_ONLY:
        return {"input_ids": torch.tensor([words])}
    media = tiny_media(model_type, seed)
    ids = [1, *words[:3]]
    for place, (modality, rows) in enumerate(features(model, media).items()):
        before, after = _fences(model_type, modality)
        ids += [*before, *[TOKENS[modality]] * len(rows), *after, *words[4 + 2 * place : 6 + 2 * place]]
    ids += words[-2:]
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **media}
    if model_type in {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}:
        inputs["mm_token_type_ids"] = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    if model_type in {"gemma3", "paligemma"}:
        inputs["token_type_ids"] = (input_ids == IMAGE).long()
    return inputs


def _fences(model_type: str, modality: str) -> tuple[list[int], list[int]]:
    if not model_type.startswith("qwen"):
        return [], []
    return ([AUDIO_START], [AUDIO_END]) if modality == "audio" else ([VISION_START], [VISION_END])
