"""Builds random Llama checkpoints in bfloat16: a base and three fine-tunes of it.

python -m examples.bench.build FOLDER LAYERS
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def checkpoint_config(layers: int) -> dict[str, object]:
    """A Llama of 61 million parameters a layer."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 2000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def tensor_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Name to shape, as transformers names them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (2000, 2048)}
    for k in range(layers):
        layer = f"model.layers.{k}"
        for name, shape in {
            "self_attn.q_proj": (2048, 2048),
            "self_attn.k_proj": (512, 2048),
            "self_attn.v_proj": (512, 2048),
            "self_attn.o_proj": (2048, 2048),
            "mlp.gate_proj": (8192, 2048),
            "mlp.up_proj": (8192, 2048),
            "mlp.down_proj": (2048, 8192),
            "input_layernorm": (2048,),
            "post_attention_layernorm": (2048,),
        }.items():
            shapes[f"{layer}.{name}.weight"] = shape
    return shapes | {"model.norm.weight": (2048,), "lm_head.weight": (2000, 2048)}


def build_checkpoint(folder: Path, *, layers: int, source: int) -> None:
    """Writes one checkpoint: the base (source 0), or the base plus a small random change."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for index, (name, shape) in enumerate(tensor_shapes(layers).items()):
        weight = np.random.default_rng([0, index]).standard_normal(shape, dtype=np.float32)
        weight = np.ones(shape, np.float32) if len(shape) == 1 else weight * 0.02
        if source:
            weight += np.random.default_rng([source, index]).standard_normal(shape, dtype=np.float32) * 0.002
        tensors[name] = torch.from_numpy(weight).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(checkpoint_config(layers)))


if __name__ == "__main__":
    for number, label in enumerate(("base", "a", "b", "c")):
        build_checkpoint(Path(sys.argv[1]) / label, layers=int(sys.argv[2]), source=number)
