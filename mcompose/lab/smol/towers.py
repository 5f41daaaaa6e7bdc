"""The family ``smol``: the three donors' classes, over SmolLM2 and real encoders.

======  ========================================  ==================================================
image   LlavaForConditionalGeneration             ViT-S/14 of DINOv2-small's shape at 56 px, 17 tokens
audio   AudioFlamingo3ForConditionalGeneration    Whisper base encoder over 0.64 s, 16 tokens
points  PointsForConditionalGeneration            PointNet of 256 points, trained here, 4 tokens
======  ========================================  ==================================================

Whisper's positions are sinusoids, so the first 32 fit a short window unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mcompose.lab.smol.speech import SAMPLE_RATE, SPOKEN_SAMPLES
from mcompose.lab.towers import Donor
from mcompose.modalities import PLACEHOLDERS

if TYPE_CHECKING:
    import torch

__all__ = ["CLOUD_POINTS", "IMAGE_SIDE", "Shapes", "build_smol_donor"]

IMAGE_SIDE: Final = 56
CLOUD_POINTS: Final = 256


@dataclass(frozen=True)
class Shapes:
    """Sizes of the encoders; tests take smaller ones.

    Args:
        vision: Configuration of the ViT.
        audio: Configuration of the Whisper encoder, without the length of its window.
        points: Configuration of the PointNet.
    """

    vision: Mapping[str, Any] = field(
        default_factory=lambda: {
            "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
            "image_size": 518, "patch_size": 14,
        }
    )  # fmt: skip
    audio: Mapping[str, Any] = field(
        default_factory=lambda: {
            "num_mel_bins": 80, "hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 2048,
            "num_attention_heads": 8,
        }
    )  # fmt: skip
    points: Mapping[str, Any] = field(
        default_factory=lambda: {"hidden_size": 128, "num_tokens": 4, "radii": [0.05, 0.1, 0.2, 0.4]}
    )


def build_smol_donor(modality: str, text: dict[str, Any], tokenizer: Any, *, shapes: Shapes | None = None) -> Donor:
    """Builds a donor's model, with fresh weights, and its processor.

    Args:
        modality: "image", "audio" or "points".
        text: Configuration of the base.
        tokenizer: Tokenizer of the base; the donor's is a copy with one more placeholder.
        shapes: Sizes of the encoders; None for the real ones.

    Returns:
        The donor. Its weights come from torch's global generator: call this inside ``deterministic_torch``.
    """
    import copy  # noqa: PLC0415 - beside its only use

    own = copy.deepcopy(tokenizer)
    own.add_tokens([PLACEHOLDERS[modality]], special_tokens=True)
    own.padding_side = "left"
    config = text | {"vocab_size": len(own), "dtype": "float32"}
    token = own.convert_tokens_to_ids(PLACEHOLDERS[modality])
    return {"image": _image, "audio": _audio, "points": _points}[modality](config, own, token, shapes or Shapes())


def _image(text: dict[str, Any], tokenizer: Any, token: int, shapes: Shapes) -> Donor:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor  # noqa: PLC0415
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: PLC0415

    vision = dict(shapes.vision)
    own: dict[str, Any] = {"image_token_id": token, "tie_word_embeddings": True}
    patches = (IMAGE_SIDE // vision["patch_size"]) ** 2
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=patches + 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **own,
    )
    model: Any = LlavaForConditionalGeneration(config)
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    pictures = CLIPImageProcessorPil(size=side, crop_size=side, do_convert_rgb=True)
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        image_token=PLACEHOLDERS["image"],
    )

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return {"pixel_values": pictures(items, return_tensors="pt")["pixel_values"]}

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1]

    return Donor("image", model, processor, "vision_tower", patches + 1, prepare, encode)


def _audio(text: dict[str, Any], tokenizer: Any, token: int, shapes: Shapes) -> Donor:
    from transformers import (  # noqa: PLC0415
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        WhisperFeatureExtractor,
    )

    frames = SPOKEN_SAMPLES // 160
    own: dict[str, Any] = {"tie_word_embeddings": False}
    config = AudioFlamingo3Config(
        audio_config=dict(shapes.audio) | {"max_source_positions": frames // 2},
        text_config=text | {"tie_word_embeddings": False},
        audio_token_id=token,
        **own,
    )
    model: Any = AudioFlamingo3ForConditionalGeneration(config)
    seconds: Any = SPOKEN_SAMPLES / SAMPLE_RATE  # the class expects whole seconds, but works with fractions
    extractor = WhisperFeatureExtractor(
        feature_size=shapes.audio["num_mel_bins"], sampling_rate=SAMPLE_RATE, chunk_length=seconds
    )
    processor = AudioFlamingo3Processor(extractor, tokenizer, audio_token=PLACEHOLDERS["audio"], max_audio_len=1)

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        waves = [item.astype(np.float32) / 32768 for item in items]
        out = extractor(waves, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt")
        return {"input_features": out["input_features"], "input_features_mask": out["attention_mask"]}

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.model.audio_tower(
            inputs["input_features"], input_features_mask=inputs["input_features_mask"]
        ).last_hidden_state

    return Donor("audio", model, processor, "audio_tower", frames // 4, prepare, encode)


def _points(text: dict[str, Any], tokenizer: Any, token: int, shapes: Shapes) -> Donor:
    from mcompose.modeling import (  # noqa: PLC0415 - torch and transformers, when needed
        PointsConfig,
        PointsForConditionalGeneration,
        PointsProcessor,
    )

    config = PointsConfig(
        text_config=text, points_config=dict(shapes.points), points_token_id=token, tie_word_embeddings=True
    )
    model: Any = PointsForConditionalGeneration(config)
    tokens = int(shapes.points["num_tokens"])
    processor = PointsProcessor(tokenizer, num_points=CLOUD_POINTS, num_points_tokens=tokens)

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return processor.process_points(items)[0]

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.model.points_tower(inputs["points"]).last_hidden_state

    return Donor("points", model, processor, "points_tower", tokens, prepare, encode)
