"""Outputs for the tests of publishing: one with a few numbers as weights, and a LLaVA small enough to run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mcompose.ledger import Ledger, SourceRow, StepRow, TensorRow

COMMIT = "0123456789abcdef0123456789abcdef01234567"

RECIPE = """\
schema: 1
name: sees-and-hears
base: hub:lmsys/vicuna-7b-v1.5
sources:
  - {name: sees, model: hub:llava-hf/llava-1.5-7b-hf, modalities: [image]}
  - {name: hears, model: local:donors/audio}
merge:
  method: naivemc
output:
  dir: build/sees-and-hears
"""

LEDGER = Ledger(
    name="sees-and-hears",
    method="naivemc",
    method_title="NaiveMC",
    method_paper="arXiv:2402.12750",
    output_format="composed",
    modalities=("image", "audio"),
    versions={"mcompose": "0.1.0", "transformers": "5.23.0"},
    sources=(
        SourceRow("base", f"hub:lmsys/vicuna-7b-v1.5@{COMMIT}", "llama", (), "llama2", "", COMMIT),
        SourceRow("sees", f"hub:llava-hf/llava-1.5-7b-hf@{COMMIT}", "llava", ("image",), "llama2", "", COMMIT),
        SourceRow("hears", "local:donors/audio", "qwen2_audio", ("audio",)),
    ),
    tensors=(
        TensorRow(
            "model.language_model.a", "merged", "language", "naivemc", ("sees", "hears"), (0.5, 0.5), "BF16", (4, 3)
        ),
        TensorRow(
            "model.language_model.b", "merged", "language", "naivemc", ("sees", "hears"), (0.5, 0.5), "BF16", (5,)
        ),
        TensorRow("model.towers.sees.a", "copied", "encoder:sees", "", ("sees",), (), "BF16", (10, 10)),
        TensorRow("lm_head.weight", "dropped", "head", "", ("hears",), note="tied to the embedding"),
    ),
    steps=(StepRow("merge", "mcompose merge recipe.yaml", details={"warnings": ["Positions fall back to 1-D."]}),),
)


def finish(folder: Path, ledger: Ledger, *, recipe: str = RECIPE) -> Path:
    """Adds what makes a checkpoint a finished output: recipes, ledger and lock."""
    (folder / "mcompose").mkdir(parents=True, exist_ok=True)
    (folder / "mcompose" / "recipe.yaml").write_text(recipe)
    (folder / "mcompose" / "resolved.yaml").write_text(recipe)
    (folder / "mcompose" / "ledger.json").write_text(ledger.to_json())
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        files[path.relative_to(folder).as_posix()] = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    (folder / "mcompose" / "lock.json").write_text(json.dumps({"format": 1, "sources": {}, "files": files}, indent=1))
    return folder


def small_output(folder: Path, *, recipe: str = RECIPE) -> Path:
    """A finished output whose weights are a few numbers in two shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "mcompose", "architectures": ["X"]}')
    (folder / "tokenizer.json").write_text("{}")
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": np.arange(600, dtype=np.float32)}, folder / one)
    save_file({"b": np.ones(7, np.float32)}, folder / two)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": one, "b": two}}))
    return finish(folder, LEDGER, recipe=recipe)


def llava_output(folder: Path, *, chat_template: bool = True) -> Path:
    """A finished native output: a real LLaVA with random weights, its tokenizer and its processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=4)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    llava_processor(chat_template=chat_template).save_pretrained(folder)
    return finish(folder, native_ledger())


def llava_processor(*, chat_template: bool):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "What", "do", "you", "see?", "user:", "is", "it"]
    tokenizer = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    image = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    template = (
        "{% for m in messages %}user: {% for c in m.content %}"
        "{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"
    )
    return LlavaProcessor(
        image, fast, patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=template if chat_template else None,
    )  # fmt: skip


def native_ledger() -> Ledger:
    """Two sources of one licence, written as LLaVA."""
    sources = (
        SourceRow("sees", f"hub:org/sees@{COMMIT}", "llava", ("image",), "apache-2.0", "", COMMIT),
        SourceRow("codes", f"hub:org/codes@{COMMIT}", "llama", (), "apache-2.0", "", COMMIT),
    )
    return Ledger(
        "sees-and-codes", "ties", "TIES", "arXiv:2306.01708", "native", ("image",), {"mcompose": "0.1.0"}, sources,
        (TensorRow("lm_head.weight", "merged", "head", "ties", ("sees", "codes"), (0.5, 0.5), "F32", (32, 16)),),
        (StepRow("merge", "mcompose merge recipe.yaml"),),
    )  # fmt: skip


COMPOSITION = """\
schema: 1
name: sees-and-hears
sources:
  - {name: sees, model: local:sees, modalities: [image]}
  - {name: hears, model: local:hears, modalities: [audio]}
merge: {method: naivemc}
output: {dir: sees-and-hears}
"""


def composed_output(folder: Path) -> Path:
    """A real composition of a LLaVA and a Qwen2-Audio with random weights, written by the merge itself."""
    import shutil

    import torch
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    from mcompose.pipeline.write import MergeOptions, merge

    shutil.rmtree(llava_output(folder / "sees", chat_template=False) / "mcompose")
    text = json.loads((folder / "sees" / "config.json").read_text())["text_config"]
    audio = {"model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    audio |= {"encoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 50}
    tokenizer = llava_processor(chat_template=False).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>"]})
    config = Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_index=len(tokenizer) - 1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Qwen2AudioForConditionalGeneration(config).save_pretrained(folder / "hears")
    sound = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    Qwen2AudioProcessor(sound, tokenizer, audio_token="<|AUDIO|>").save_pretrained(folder / "hears")
    (folder / "recipe.yaml").write_text(COMPOSITION)
    merge(folder / "recipe.yaml", options=MergeOptions(quiet=True, allow_different_base=True))
    return folder / "sees-and-hears"
