"""Media files, records and checkpoints for the tests about data."""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "modeling"))

from composed_folders import tiny_tokenizer, write_folder
from tiny_models import tiny_model
from tiny_processors import llava, qwen2_audio

from mcompose.align.data.samples import Sample
from mcompose.modeling import register

MARKS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


def picture(path: Path, shade: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.add.outer(np.arange(40), np.arange(32)) * 3 + shade
    Image.fromarray((grid % 256).astype(np.uint8)).convert("RGB").save(path)
    return path


def sound(path: Path, samples: int = 400, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave_N = (10000 * np.sin(np.arange(samples) / 5)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(wave_N.tobytes())
    return path


def broken(path: Path) -> Path:
    """A picture that ends in its middle: it opens, and does not decode."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def write_lines(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def llava_record(question, answer, **media):
    return {
        "id": "0", **media,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }  # fmt: skip


def text(words):
    return {"type": "text", "text": words}


def sample(*turns, place="a.jsonl:1", **more):
    """A sample from (role, part, part, ...) with strings as text parts."""
    messages = tuple(
        {"role": role, "content": [text(part) if isinstance(part, str) else part for part in parts]}
        for role, *parts in turns
    )
    return Sample(messages, more.pop("domain", None), "a.jsonl", 0, place=place, **more)


def composed_folder(folder: Path) -> Path:
    """A composition that sees (LLaVA) and hears (Qwen2-Audio), with the tokenizer of words."""
    sees, hears = tiny_model("llava"), tiny_model("qwen2_audio", seed=1)
    return write_folder(
        folder, sees, {"sees": sees, "hears": hears}, modalities={"sees": ["image"], "hears": ["audio"]},
        tokenizer=tiny_tokenizer(*MARKS), processors={"sees": llava(), "hears": qwen2_audio()},
    )  # fmt: skip


def load_processor(folder: Path):
    register()
    return transformers.AutoProcessor.from_pretrained(folder)


def load_model(folder: Path):
    register()
    return transformers.AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
