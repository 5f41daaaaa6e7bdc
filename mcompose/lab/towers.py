"""The four donors' classes: small encoders of real architectures over the lab's language model.

======  =============================  ====================================================
image   LlavaForConditionalGeneration  CLIP vision encoder, 4 patches
audio   GlmAsrForConditionalGeneration Whisper-like encoder over a log-mel spectrogram, 4 tokens
video   VideoLlavaForConditional...    CLIP vision encoder over 9 tiles of 3 frames, 10 tokens
points  PointsForConditionalGeneration PointNet with densities, 4 tokens (own code)
======  =============================  ====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mcompose.lab.media import IMAGE_SIDE, NUM_POINTS, SAMPLE_RATE, SAMPLES
from mcompose.modalities import PLACEHOLDERS

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedModel

__all__ = ["Donor", "build_donor"]

_WIDTH = 64
_GRID = 3  # 3 x 3 tiles of 3 frames are the 27 frames of a clip


@dataclass(frozen=True)
class Donor:
    """A donor before it is written to disk: model, processor and how to encode its medium.

    Args:
        modality: Modality that it takes.
        model: The multimodal model; its language model has fresh weights at first.
        processor: Processor of the model.
        tower: Name of the encoder inside ``model.model``.
        tokens: Placeholder tokens per item.
        prepare: Function from raw items, as they are drawn, to the encoder's inputs by the model's argument names.
        encode: Function from these inputs to the encoder's tokens before the projector, (items, tokens, width).
        code: ``module.Class`` of a processor that is shipped as code; empty for a native one.
    """

    modality: str
    model: PreTrainedModel
    processor: Any
    tower: str
    tokens: int
    prepare: Callable[[list[np.ndarray]], dict[str, torch.Tensor]]
    encode: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    code: str = ""


def build_donor(modality: str, text_config: LlamaConfig) -> Donor:
    """Builds a donor's model, with fresh weights, and its processor.

    Args:
        modality: "image", "audio", "video" or "points".
        text_config: The language model's configuration with the base's vocabulary; the donor adds its placeholder.

    Returns:
        The donor. Its weights come from torch's global generator: call this inside ``deterministic_torch``.
    """
    from mcompose.lab.checkpoints import make_tokenizer  # noqa: PLC0415 - import cost

    tokenizer = make_tokenizer(placeholder=PLACEHOLDERS[modality])
    text = text_config.to_dict() | {"vocab_size": len(tokenizer)}
    token_id = tokenizer.get_vocab()[PLACEHOLDERS[modality]]
    return {"image": _image, "audio": _audio, "video": _video, "points": _points}[modality](text, tokenizer, token_id)


def _vision(*, image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "projection_dim": _WIDTH,
    }


def _image(text: dict[str, Any], tokenizer: Any, token_id: int) -> Donor:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor  # noqa: PLC0415
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: PLC0415

    config = LlavaConfig(
        vision_config=_vision(image_size=IMAGE_SIDE, patch_size=IMAGE_SIDE // 2),
        text_config=text,
        image_token_index=token_id,
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    pictures = CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=IMAGE_SIDE // 2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        rgb = [np.repeat(item[..., None], 3, axis=-1) for item in items]
        return {"pixel_values": pictures(rgb, return_tensors="pt")["pixel_values"]}

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1][:, 1:]

    return Donor("image", model, processor, "vision_tower", 4, prepare, encode)


def _audio(text: dict[str, Any], tokenizer: Any, token_id: int) -> Donor:
    from transformers import (  # noqa: PLC0415
        GlmAsrConfig,
        GlmAsrForConditionalGeneration,
        GlmAsrProcessor,
        WhisperFeatureExtractor,
    )

    config = GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder",
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_mel_bins": 40,
            "max_position_embeddings": 64,
        },
        text_config=text,
        audio_token_id=token_id,
        tie_word_embeddings=False,
    )
    model = GlmAsrForConditionalGeneration(config)
    seconds: Any = SAMPLES / SAMPLE_RATE  # the class expects whole seconds, but works with fractions
    extractor = WhisperFeatureExtractor(
        feature_size=40, sampling_rate=SAMPLE_RATE, hop_length=200, n_fft=400, chunk_length=seconds
    )
    processor = GlmAsrProcessor(extractor, tokenizer, audio_token=PLACEHOLDERS["audio"], max_audio_len=4)

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        waves = [item.astype(np.float32) / 32768 for item in items]
        out = extractor(waves, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt")
        return {"input_features": out["input_features"], "input_features_mask": out["attention_mask"]}

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        frames = model.model.audio_tower(inputs["input_features"]).last_hidden_state
        return frames.reshape(frames.shape[0], -1, 4 * _WIDTH)

    return Donor("audio", model, processor, "audio_tower", 4, prepare, encode)


def _video(text: dict[str, Any], tokenizer: Any, token_id: int) -> Donor:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration  # noqa: PLC0415

    from mcompose.modeling import FramesProcessor  # noqa: PLC0415

    config = VideoLlavaConfig(
        vision_config=_vision(image_size=_GRID * IMAGE_SIDE, patch_size=IMAGE_SIDE),
        text_config=text,
        image_token_index=len(tokenizer) + 1,  # never used: no prompt contains an image
        video_token_index=token_id,
        video_seq_length=10,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    model = VideoLlavaForConditionalGeneration(config)
    processor = FramesProcessor(tokenizer, grid=_GRID, side=IMAGE_SIDE, num_video_tokens=10)

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return processor.process_videos(items)[0]

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        flat = inputs["pixel_values_videos"].flatten(0, 1)
        return model.model.video_tower(flat, output_hidden_states=True).hidden_states[-1]

    return Donor("video", model, processor, "video_tower", 10, prepare, encode, "processing_frames.FramesProcessor")


def _points(text: dict[str, Any], tokenizer: Any, token_id: int) -> Donor:
    from mcompose.modeling import (  # noqa: PLC0415 - torch and transformers, when needed
        PointsConfig,
        PointsForConditionalGeneration,
        PointsProcessor,
    )

    config = PointsConfig(
        text_config=text,
        points_config={"hidden_size": _WIDTH, "num_tokens": 4, "radii": [0.05, 0.1, 0.2, 0.4]},
        points_token_id=token_id,
    )
    model = PointsForConditionalGeneration(config)
    processor = PointsProcessor(tokenizer, num_points=NUM_POINTS, num_points_tokens=4)

    def prepare(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return processor.process_points(items)[0]

    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.model.points_tower(inputs["points"]).last_hidden_state

    return Donor("points", model, processor, "points_tower", 4, prepare, encode)
