"""One tiny model per family: its config, deterministic weights, and inputs that show it something.

``TINY[model_type]()`` is the config, ``tiny_model(model_type)`` the model in float32, with weights that depend on the
seed alone, ``tiny_inputs(model_type, model)`` what a full forward pass takes: text with placeholders, and the media.
``features(model, inputs)`` calls the family's own encoders, and ``media`` picks their arguments out of the inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from tiny_configs import (
    AUDIO_END,
    AUDIO_START,
    IMAGE,
    RAW,
    TEXT_ONLY,
    TOKENS,
    VIDEO,
    VISION_END,
    VISION_START,
)
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

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
    seconds = {"video_second_per_grid": torch.tensor([1.0])}
    return {**_patches(noise), **_mel(32, mask="feature_attention_mask")(noise), **seconds}


def _crops(noise: Any) -> dict[str, torch.Tensor]:
    return {
        "image_pixel_values": noise(1, 2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]]),
        "image_attention_mask": torch.ones(1, 2, 4, 4), "audio_input_features": noise(1, 96, 80),
        "audio_embed_sizes": torch.tensor([12]),
    }  # fmt: skip


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
    "qwen3_asr": _mel(100, mask="input_features_mask"),
    "granite_speech": lambda noise: {
        "input_features": noise(1, 12, 8),
        "input_features_mask": torch.ones(1, 6, dtype=torch.bool),
    },
    "idefics2": _masked(28),
    **dict.fromkeys(("idefics3", "smolvlm"), _masked(56)),
    "phi4_multimodal": _crops,
    "aria": lambda noise: {**_square(28)(noise), "pixel_mask": torch.ones(1, 28, 28, dtype=torch.bool)},
}


def features(model: PreTrainedModel, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows that the family's own encoders and projector make of the media, per modality, in the order of the text."""
    base = getattr(model, model.base_model_prefix, model)
    if base.config.model_type == "phi4_multimodal":
        return _scattered(base, media)
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
    known = inspect.signature(function).parameters
    if "pixel_values" in known and "pixel_values_images" in arguments:  # the name changed between versions
        arguments = {"pixel_values": arguments["pixel_values_images"]}
    if base.config.model_type == "granite_speech":
        arguments = {"input_features": arguments["input_features"]}
    return function(**arguments)


@torch.no_grad()
def _scattered(base: Any, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Phi-4 has no function for its features: they are read back from where its embedding puts them."""
    found = {}
    for modality, rows in (("image", 13), ("audio", 12)):
        ids = torch.full((1, rows), TOKENS[modality])
        found[modality] = base.embed_tokens_extend(ids, torch.zeros(1, rows, 32), **media)[0]
    return found


def _rows(output: Any) -> torch.Tensor:
    value = getattr(output, "pooler_output", output)
    value = output.last_hidden_state if value is None else value
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
        items = 2 if (model_type, modality) == ("qwen3_vl", "video") else 1
        ids += [*before, *[TOKENS[modality]] * (len(rows) // items), *after] * items
        ids += words[4 + 2 * place : 6 + 2 * place]
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
