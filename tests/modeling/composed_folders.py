"""Writes composed checkpoints from tiny native models by renaming, for the tests of this room."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mcompose.modeling import composed_config, stored_source
from mcompose.modeling.bundle import write_files
from mcompose.modeling.processing.composed import add_placeholders, build_processor
from mcompose.modeling.towers.build import build_tower

WORDS = [
    "USER",
    ":",
    "ASSISTANT",
    "Frame1",
    "Frame2",
    "what",
    "is",
    "it",
    "?",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "cat",
    "dog",
    "sees",
    "hears",
    "the",
    "here",
    "two",
    "\n",
    ".",
    ",",
]


def tiny_tokenizer(*special: str, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """A word tokenizer; ``special`` become special tokens after the words."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *WORDS]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.add_tokens(list(special), special_tokens=True)
    return made


def text_of(model):
    """The native decoder of a model, and its parameters' prefix."""
    decoder = model.get_decoder()
    return decoder, next(name for name, module in model.named_modules() if module is decoder)


def composed_state(language, sources):
    """Names of a composed checkpoint over copies of the natives' tensors.

    ``language`` is the native model whose language model is used, ``sources`` name -> native model.
    """
    state = {}
    decoder, prefix = text_of(language)
    for name, tensor in decoder.state_dict().items():
        state[f"model.language_model.{name}"] = tensor.detach().clone()
    state["lm_head.weight"] = language.get_output_embeddings().weight.detach().clone()
    for source, model in sources.items():
        _, prefix = text_of(model)
        base = model.model if hasattr(model, "model") and prefix != "model" else model
        inside = dict(base.state_dict())
        kept = build_tower(type(model.config).from_dict(model.config.to_dict()), attn_implementation=None).state_dict()
        for name in kept:
            state[f"model.towers.{source}.{name}"] = inside[name].detach().clone()
    return state


def config_for(language, sources, modalities, placeholders, **extra):
    text = language.config.get_text_config(decoder=True)
    entries = {name: stored_source(model.config, modalities=modalities[name]) for name, model in sources.items()}
    return composed_config(text, entries, placeholders=placeholders, **extra)


def write_folder(folder, language, sources, *, modalities, tokenizer, processors, dtype=torch.float32):
    """A composed checkpoint on disk, as the real writer makes it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    served = [m for name in sources for m in modalities[name]]
    placeholders = add_placeholders(tokenizer, served)
    config = config_for(language, sources, modalities, placeholders, dtype=str(dtype).removeprefix("torch."))
    config.save_pretrained(folder)
    state = {k: v.to(dtype).contiguous() for k, v in composed_state(language, sources).items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    build_processor(tokenizer, config.sources, processors=processors).save_pretrained(folder)
    write_files(folder)
    return folder


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
