"""Small parts for the family ``smol``: nothing is fetched, and a family is made in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mcompose.lab import FitSettings, SmolSettings
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.lab.smol.objects import SURFACE_POINTS, Thing
from mcompose.lab.smol.questions import KINDS, MODALITIES, PAIR_TASKS, SINGLE_TASKS
from mcompose.lab.smol.settings import SmolParts
from mcompose.lab.smol.text import text_question
from mcompose.lab.smol.towers import Shapes

TINY = SmolSettings(
    base=FitSettings(1, 1e-3, 2), points=FitSettings(2, 1e-3, 4), reader=FitSettings(2, 1e-3, 4),
    projector=FitSettings(2, 1e-2, 4),
    full=FitSettings(2, 1e-2, 4), copies=2, spoken=2, heard=1, single=6, joint=6, text=4, checked=4,
)  # fmt: skip
WIDTH, LAYERS = 24, 2
SHAPES = Shapes(
    vision={
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    },
    audio={
        "num_mel_bins": 16, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2,
    },
    points={"hidden_size": 16, "num_tokens": 2, "radii": [0.2]},
)  # fmt: skip


def some_things(each: int = 4) -> list[Thing]:
    """Objects of every kind: a grey that tells it, and a box as long as its place in the list."""
    generator = generator_for(0, "things")
    made = []
    for place, kind in enumerate(KINDS):
        for number in range(each):
            icon = np.full((128, 128, 3), 20 * place + number, dtype=np.uint8)
            cloud = generator.uniform(-1 - place, 1 + place, size=(SURFACE_POINTS, 3)).astype(np.float32)
            made.append(Thing(f"{kind} {number}", kind, icon, cloud))
    return made


def hummed(utterances, library):
    """In place of speech: a tone that tells word, voice, speed and pitch."""
    seconds = np.arange(4000) / 16000
    made = []
    for one in utterances:
        hertz = 200 + 60 * KINDS.index(one.word) + one.pitch + len(one.voice) + one.speed / 100
        made.append(np.rint(9000 * np.sin(2 * np.pi * hertz * seconds)).astype(np.int16))
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token."""
    generator = generator_for(0, "words")
    tasks = [(t, 1) for t in SINGLE_TASKS] + [(t, 2) for t in (*PAIR_TASKS, "common")] + [("common", 3)]
    texts = [*KINDS, *MODALITIES, "text yes no"]
    for task, inputs in tasks * 60:
        said, question = text_question(task, inputs, generator=generator)
        texts.append(f"{said} {question.text} {question.answer}")
    words = pre_tokenizers.Whitespace()
    found = sorted({word for text in texts for word, _ in words.pre_tokenize_str(text)})
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<eos>", *found])}, unk_token="<unk>"))
    inner.pre_tokenizer = words
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def small_parts(folder: Path) -> SmolParts:
    """A base that knows nothing, and encoders to match."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    with deterministic_torch(0, "stand-in base"):
        LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return SmolParts(folder, some_things(), folder, {}, SHAPES)
