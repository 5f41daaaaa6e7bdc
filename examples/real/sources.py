"""Builds two multimodal sources on one small language model: native classes, real encoders, a short fine-tuning."""

import json
import random
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    WhisperFeatureExtractor,
)

__all__ = ["make_audio_source", "make_image_source", "read_sound"]

IMAGE_SIDE = 112  # 8 x 8 patches: few enough tokens for a CPU
QUESTION = "What do you hear?"
PLACEHOLDER = "<sound>"
Batch = Callable[[random.Random], tuple[list[str], list[str], dict[str, Any]]]
"""Function that draws prompts, answers and media for one step."""


def _language(folder: Path, placeholder: str) -> tuple[LlamaForCausalLM, Any, int]:
    """Loads the language model in float32 and adds a token; returns model, tokenizer, and the token's id."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([placeholder], special_tokens=True)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer, tokenizer.convert_tokens_to_ids(placeholder)


def make_image_source(folder: Path, *, language: Path, vision: dict[str, torch.Tensor], shapes: Path) -> Path:
    """Makes a LLaVA over the ViT, trained on questions about drawn shapes.

    Args:
        folder: Folder to write; left as it is when it exists.
        language: Folder of the exported language model.
        vision: Weights of the ViT.
        shapes: ``questions.json`` of easy-vqa.
    """
    if (folder / "config.json").is_file():
        return folder
    text, tokenizer, placeholder = _language(language, "<image>")
    own: dict[str, Any] = {"image_token_id": placeholder, "tie_word_embeddings": True}
    config = LlavaConfig(
        vision_config={
            "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
            "image_size": 518, "patch_size": 14,
        },
        text_config=text.config,
        **own,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=side),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    questions = json.loads(shapes.read_text())

    def batch(rng: random.Random) -> tuple[list[str], list[str], dict[str, Any]]:
        drawn = rng.sample(questions, 4)
        images = [Image.open(shapes.parent / "images" / f"{number}.png").convert("RGB") for _, _, number in drawn]
        return [f"<image>\n{question}" for question, _, _ in drawn], [a for _, a, _ in drawn], {"images": images}

    _tune(model, processor, batch)
    return _save(folder, model, processor)


def read_sound(path: Path) -> np.ndarray:
    """Reads a 16-bit mono WAV file of 8 kHz as floats at 16 kHz."""
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 8000)
        low = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 32768
    return np.interp(np.arange(2 * len(low)) / 2, np.arange(len(low)), low).astype(np.float32)


def make_audio_source(folder: Path, *, language: Path, speech: dict[str, torch.Tensor], sounds: Path) -> Path:
    """Makes an Audio Flamingo 3 over the Whisper encoder, trained to name spoken digits and letters.

    Args:
        folder: Folder to write; left as it is when it exists.
        language: Folder of the exported language model.
        speech: Weights of the encoder.
        sounds: Folder with ``digits/`` and ``letters/``.
    """
    if (folder / "config.json").is_file():
        return folder
    text, tokenizer, placeholder = _language(language, PLACEHOLDER)
    text.config.tie_word_embeddings = False
    own: dict[str, Any] = {"tie_word_embeddings": False}
    config = AudioFlamingo3Config(
        audio_config={
            "num_mel_bins": 80, "hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 2048,
            "num_attention_heads": 8,
        },
        text_config=text.config,
        audio_token_id=placeholder,
        **own,
    )  # fmt: skip
    model = AudioFlamingo3ForConditionalGeneration(config)
    model.model.audio_tower.load_state_dict(speech)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())  # this class does not tie its head
    processor = AudioFlamingo3Processor(WhisperFeatureExtractor(feature_size=80), tokenizer, audio_token=PLACEHOLDER)
    spoken = {path.stem: read_sound(path) for kind in ("digits", "letters") for path in _words(sounds / kind)}

    def batch(rng: random.Random) -> tuple[list[str], list[str], dict[str, Any]]:
        words = rng.sample(sorted(spoken), 4)
        return [f"{PLACEHOLDER}\n{QUESTION}"] * 4, words, {"audio": [spoken[word] for word in words]}

    _tune(model, processor, batch)
    return _save(folder, model, processor)


def _words(folder: Path) -> Iterator[Path]:
    """Returns the files of single digits and letters; the folder also has whole phrases."""
    return (path for path in sorted(folder.glob("*.wav")) if len(path.stem) == 1)


def _tune(model: Any, processor: Any, batch: Batch) -> None:
    """Trains the projector, then projector and language model; the encoder is not trained."""
    model.requires_grad_(requires_grad=False)
    rng = random.Random(0)  # noqa: S311 - a fixed order of examples
    for steps, parts, rate in (
        (60, [model.model.multi_modal_projector], 1e-3),
        (30, [model.model.multi_modal_projector, model.model.language_model], 2e-5),
    ):
        parameters = [parameter for part in parts for parameter in part.requires_grad_().parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for step in range(steps):
            loss = _loss(model, processor, *batch(rng))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                print(f"  {type(model).__name__} step {step}: loss {loss.item():.3f}", flush=True)


def _loss(model: Any, processor: Any, prompts: list[str], answers: list[str], media: dict[str, Any]) -> torch.Tensor:
    """Computes the cross-entropy of the answers alone."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    tokenizer = processor.tokenizer
    heads = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    tokenizer.padding_side = "right"
    whole = [f"{head}{answer}<|im_end|>" for head, answer in zip(heads, answers, strict=True)]
    inputs = processor(text=whole, **media, text_kwargs={"padding": True}, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        length = int(inputs["attention_mask"][row].sum())
        count = len(tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"])
        labels[row, length - count : length] = inputs["input_ids"][row, length - count : length]
    inputs.pop("labels", None)
    return model(**inputs, labels=labels).loss


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
