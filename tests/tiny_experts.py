"""One tiny checkpoint per kind of encoder that can be a domain expert, each with its own processor, as on the Hub.

``EXPERTS[name]`` is ``(class, config, processor, path of the encoder in it)``; ``write_expert`` writes the files, and
``native_encoder`` loads them with transformers alone and returns the encoder, which copies are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as t
from tiny_models import fill

VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
QWEN = {"model_type": "qwen2", **TEXT, "num_key_value_heads": 2}
PATCHES = {"hidden_size": 32, "patch_embed_hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
MAP = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "mlp_dim": 64,
    "patch_size": 8, "window_size": 2, "global_attn_indexes": [1],
}  # fmt: skip


class Kind(NamedTuple):
    """How a tiny expert is made, and where its encoder lies."""

    cls: str
    config: Callable[[], Any]
    processor: Callable[[], Any]
    path: str
    leading: int = 0
    vectors: int = 4
    modality: str = "image"


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _clip() -> Any:
    return t.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=_square(28))


def _vit() -> Any:
    return t.ViTImageProcessor(size=_square(28))


def _donut() -> Any:
    decoder = t.MBartConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=50, is_decoder=True,
        add_cross_attention=True, **IDS,
    )  # fmt: skip
    return t.VisionEncoderDecoderConfig(encoder=t.DonutSwinConfig(**SWIN).to_dict(), decoder=decoder.to_dict())


def _sam_processor() -> Any:
    small = {"mask_size": {"longest_edge": 8}, "mask_pad_size": _square(8)}
    return t.SamImageProcessor(size={"longest_edge": 32}, pad_size=_square(32), **small)


def _whisper() -> Any:
    sizes = {
        f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 2), ("ffn_dim", 32))
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1}
    return t.WhisperConfig(d_model=32, vocab_size=50, num_mel_bins=4, max_source_positions=200, **sizes, **heads, **IDS)


def _clap(*, fused: bool = False) -> Any:
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1],
        "num_attention_heads": [1, 2], "window_size": 2, "patch_size": 4, "patch_stride": [4, 4], "projection_dim": 16,
        "patch_embed_input_channels": 1, "enable_fusion": fused,
    }  # fmt: skip
    return t.ClapConfig(audio_config=audio, text_config={**TEXT, **IDS})


EXPERTS: dict[str, Kind] = {
    "pix2struct": Kind(
        "Pix2StructForConditionalGeneration",
        lambda: t.Pix2StructConfig(
            text_config={"hidden_size": 32, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 16, "vocab_size": 50},
            vision_config={**PATCHES, "d_ff": 64, "d_kv": 16, "seq_len": 64},
        ),
        lambda: t.Pix2StructImageProcessor(patch_size=_square(4), max_patches=16, is_vqa=True),
        "encoder", vectors=16,
    ),
    "clip": Kind(
        "CLIPModel", lambda: t.CLIPConfig(vision_config=VISION, text_config={**TEXT, **IDS}), _clip, "vision_model", 1
    ),
    "siglip": Kind(
        "SiglipModel",
        lambda: t.SiglipConfig(vision_config=VISION, text_config={**TEXT, **IDS}),
        lambda: t.SiglipImageProcessor(size=_square(28)),
        "vision_model",
    ),
    "siglip2": Kind(
        "Siglip2Model",
        lambda: t.Siglip2Config(
            vision_config={**VISION, "num_patches": 16}, text_config={**TEXT, **IDS}
        ),
        lambda: t.Siglip2ImageProcessor(patch_size=14, max_num_patches=16),
        "vision_model", vectors=16,
    ),
    "dinov2": Kind(
        "Dinov2ForImageClassification",
        lambda: t.Dinov2Config(**VISION, mlp_ratio=2),
        lambda: t.BitImageProcessor(size={"shortest_edge": 28}, crop_size=_square(28)),
        "dinov2", 1,
    ),
    "dinov2-registers": Kind(
        "Dinov2WithRegistersModel",
        lambda: t.Dinov2WithRegistersConfig(**VISION, mlp_ratio=2, num_register_tokens=4),
        lambda: t.BitImageProcessor(size={"shortest_edge": 28}, crop_size=_square(28)),
        "", 5,
    ),
    "vit": Kind("ViTForImageClassification", lambda: t.ViTConfig(**VISION), _vit, "vit", 1),
    "vit-pooled": Kind("ViTModel", lambda: t.ViTConfig(**VISION), _vit, "", 1),
    "donut": Kind(
        "VisionEncoderDecoderModel", _donut, lambda: t.DonutImageProcessor(size=_square(32)), "encoder", vectors=16
    ),
    "kosmos": Kind(
        "Kosmos2_5ForConditionalGeneration",
        lambda: t.Kosmos2_5Config(
            text_config={"embed_dim": 16, "layers": 1, "ffn_dim": 16, "attention_heads": 2, "vocab_size": 50},
            vision_config={**PATCHES, "intermediate_size": 64, "head_dim": 16, "max_num_patches": 64},
        ),
        lambda: t.Kosmos2_5ImageProcessor(patch_size=_square(4), max_patches=16),
        "vision_model", vectors=16,
    ),
    "got": Kind(
        "GotOcr2ForConditionalGeneration",
        lambda: t.GotOcr2Config(
            vision_config={**MAP, "image_size": 32, "output_channels": 8}, text_config={**QWEN, **IDS}
        ),
        lambda: t.GotOcr2ImageProcessor(size=_square(32)),
        "model.vision_tower", vectors=16,
    ),
    "internvl": Kind(
        "InternVLForConditionalGeneration",
        lambda: t.InternVLConfig(
            vision_config={**VISION, "image_size": [28, 28], "patch_size": [14, 14]}, text_config={**QWEN, **IDS}
        ),
        lambda: t.GotOcr2ImageProcessor(size=_square(28), crop_to_patches=True),
        "model.vision_tower", 1,
    ),
    "sam": Kind(
        "SamModel",
        lambda: t.SamConfig(vision_config={**MAP, "image_size": 32, "output_channels": 16}),
        _sam_processor,
        "vision_encoder", vectors=16,
    ),
    "whisper": Kind(
        "WhisperForConditionalGeneration", _whisper,
        lambda: t.WhisperFeatureExtractor(feature_size=4, sampling_rate=8000, hop_length=20, chunk_length=1, n_fft=256),
        "model.encoder", vectors=200, modality="audio",
    ),
    "ast": Kind(
        "ASTForAudioClassification",
        lambda: t.ASTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_length=64,
            num_mel_bins=16,
        ),
        lambda: t.ASTFeatureExtractor(num_mel_bins=16, max_length=64),
        "audio_spectrogram_transformer", 2, 5, "audio",
    ),
    "clap": Kind(
        "ClapModel", _clap, lambda: t.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc"),
        "audio_model", vectors=64, modality="audio",
    ),
    "clap-fused": Kind(
        "ClapModel", lambda: _clap(fused=True), lambda: t.ClapFeatureExtractor(feature_size=16, max_length_s=1),
        "audio_model", vectors=64, modality="audio",
    ),
}  # fmt: skip

if not t.CONFIG_MAPPING["got_ocr2"].sub_configs["vision_config"].model_type:
    del EXPERTS["got"]  # older transformers have no type for its encoder alone


def write_expert(name: str, folder: Path, *, seed: int = 5, processor: bool = True) -> Path:
    """Writes the whole checkpoint, encoder and all that an expert does not need."""
    kind = EXPERTS[name]
    with torch.random.fork_rng():
        model = getattr(t, kind.cls)._from_config(kind.config()).eval()
    fill(model, seed)
    model.save_pretrained(folder)
    if processor:
        kind.processor().save_pretrained(folder)
    return folder


def native_encoder(name: str, folder: Path) -> Any:
    """The encoder as transformers itself loads it."""
    kind = EXPERTS[name]
    model = getattr(t, kind.cls).from_pretrained(folder).eval()
    return attrgetter(kind.path)(model) if kind.path else model


def blip_config() -> t.Blip2Config:
    """A tiny BLIP-2 with four queries."""
    queries = {"hidden_size": 24, "encoder_hidden_size": 32, "cross_attention_frequency": 1, "vocab_size": 50}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {"model_type": "opt", "vocab_size": 50, "hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16}
    return t.Blip2Config(
        vision_config=VISION,
        qformer_config={**queries, **sizes},
        text_config={**text, "num_hidden_layers": 1, "num_attention_heads": 2},
        num_query_tokens=4,
    )


def write_blip(folder: Path) -> None:
    """A BLIP-2 checkpoint."""
    blip = t.Blip2ForConditionalGeneration(blip_config())
    fill(blip, 6)
    blip.save_pretrained(folder)
    t.BlipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
