"""Checkpoints of 7B and 70B models that take no disk: real headers over sparse files, tokenizers of 32,000 entries."""

import itertools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

TEXT = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def language(prefix: str, config: dict) -> Shapes:
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    yield f"{prefix}model.embed_tokens.weight", (rows, width)
    for layer in range(config["num_hidden_layers"]):
        start = f"{prefix}model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{start}.{name}.weight", (width,)
        for name, height in (("k", keys), ("o", width), ("q", width), ("v", keys)):
            yield f"{start}.self_attn.{name}_proj.weight", (height, width)
        for name in ("gate", "up"):
            yield f"{start}.mlp.{name}_proj.weight", (inner, width)
        yield f"{start}.mlp.down_proj.weight", (width, inner)
    yield f"{prefix}model.norm.weight", (width,)
    yield f"{prefix}lm_head.weight", (rows, width)


def vision(tower: str = "vision_tower", *, places: int = 577) -> Shapes:
    start = f"{tower}.vision_model"
    yield f"{start}.embeddings.class_embedding", (1024,)
    yield f"{start}.embeddings.patch_embedding.weight", (1024, 3, 14, 14)
    yield f"{start}.embeddings.position_embedding.weight", (places, 1024)
    layer = {f"self_attn.{name}_proj": (1024, 1024) for name in ("k", "out", "q", "v")}
    layer |= {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096), "layer_norm1": (1024,), "layer_norm2": (1024,)}
    named = {f"encoder.layers.{k}.{name}": shape for k in range(24) for name, shape in layer.items()}
    for name, shape in {**named, "pre_layrnorm": (1024,), "post_layernorm": (1024,)}.items():
        yield f"{start}.{name}.weight", shape
        yield f"{start}.{name}.bias", shape[:1]


def projector() -> Shapes:
    for name, width in (("linear_1", 1024), ("linear_2", 4096)):
        yield f"multi_modal_projector.{name}.weight", (4096, width)
        yield f"multi_modal_projector.{name}.bias", (4096,)


def write_checkpoint(folder: Path, shapes: Shapes, config: dict, *, shards: int, added: dict[int, str]) -> None:
    folder.mkdir()
    tensors = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, end = {}, 0
        for key, shape in tensors[shard::shards]:
            start, end = end, end + 2 * math.prod(shape)
            header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
            weight_map[key] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            handle.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"token{index}é": index for index in range(32000)}
    merges = [["to", f"k{index}"] for index in range(61000)]
    tokens = [{"id": index, "content": content, "special": True} for index, content in added.items()]
    tokenizer = {"added_tokens": tokens, "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")


def write_llava(folder: Path) -> None:
    """LLaVA 1.5 7B."""
    text = {**TEXT, "vocab_size": 32064}
    config = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000,
        "text_config": text, "vision_config": VISION, "torch_dtype": "float16",
    }  # fmt: skip
    shapes = itertools.chain(language("language_model.", text), vision(), projector())
    write_checkpoint(folder, shapes, config, shards=3, added={32000: "<image>", 32001: "<pad>"})


def write_video_llava(folder: Path) -> None:
    """Video-LLaVA 7B: a tower for images and one for films."""
    text = {**TEXT, "vocab_size": 32064}
    config = {
        "model_type": "video_llava", "architectures": ["VideoLlavaForConditionalGeneration"],
        "image_token_index": 32000, "video_token_index": 32001, "text_config": text,
        "vision_config": {**VISION, "image_size": 224}, "torch_dtype": "float16",
    }  # fmt: skip
    towers = (vision(f"{kind}_tower", places=257) for kind in ("image", "video"))
    shapes = itertools.chain(language("language_model.", text), *towers, projector())
    write_checkpoint(folder, shapes, config, shards=3, added={32000: "<image>", 32001: "<video>", 32002: "<pad>"})
