"""What starting costs: CPU seconds of help, inspect and plan, and that they load none of the heavy libraries.

The checkpoints are real headers over sparse files, with tokenizers of 32,000 entries. 7B: LLaVA 1.5 by its published
shapes, and two Vicuna-like language models. 70B: five models of the shapes of Llama 2 70B, in 15 files each.
"""

import json
import math
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sources import write_recipe

HEAVY = ("torch", "transformers", "numba", "mergekit", "accelerate", "peft", "huggingface_hub", "safetensors")
TEXT = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "float16", "tie_word_embeddings": False,
}  # fmt: skip
LARGE = {
    **TEXT, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
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


def vision() -> Shapes:
    start = "vision_tower.vision_model"
    yield f"{start}.embeddings.class_embedding", (1024,)
    yield f"{start}.embeddings.patch_embedding.weight", (1024, 3, 14, 14)
    yield f"{start}.embeddings.position_embedding.weight", (577, 1024)
    layer = {f"self_attn.{name}_proj": (1024, 1024) for name in ("k", "out", "q", "v")}
    layer |= {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096), "layer_norm1": (1024,), "layer_norm2": (1024,)}
    named = {f"encoder.layers.{k}.{name}": shape for k in range(24) for name, shape in layer.items()}
    for name, shape in {**named, "pre_layrnorm": (1024,), "post_layernorm": (1024,)}.items():
        yield f"{start}.{name}.weight", shape
        yield f"{start}.{name}.bias", shape[:1]
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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    text = {**TEXT, "vocab_size": 32064}
    llava = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000,
        "text_config": text, "vision_config": VISION, "torch_dtype": "float16",
    }  # fmt: skip

    def whole() -> Shapes:
        yield from language("language_model.", text)
        yield from vision()

    write_checkpoint(folder / "llava", whole(), llava, shards=3, added={32000: "<image>", 32001: "<pad>"})
    write_checkpoint(folder / "vicuna", language("", TEXT), TEXT, shards=2, added={})
    write_checkpoint(folder / "expert", language("", TEXT), TEXT, shards=2, added={0: "token0é"})
    return write_recipe(
        folder / "recipe.yaml",
        base="local:vicuna",
        sources=[{"name": "sees", "model": "local:llava"}, {"name": "expert", "model": "local:expert"}],
        merge={"method": "ties", "parameters": {"density": 0.2}},
        output={"dir": "out"},
    )


@pytest.fixture(scope="module")
def large_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seventy")
    names = ("base", "chat", "code", "maths", "prose")
    for name in names:
        write_checkpoint(folder / name, language("", LARGE), LARGE, shards=15, added={})
    return write_recipe(
        folder / "recipe.yaml",
        base="local:base",
        sources=[{"name": name, "model": f"local:{name}"} for name in names[1:]],
        merge={"method": "ties", "parameters": {"density": 0.2}},
        output={"dir": "out"},
    )


def run(*arguments: str) -> tuple[float, str]:
    """CPU seconds of a command in a process of its own, and what it printed; no heavy library may be loaded."""
    code = (
        "import atexit, os, sys\n"
        "def tell():\n"
        f"    print('heavy:', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "    times = os.times(); print(times.user + times.system, file=sys.stderr)\n"
        "atexit.register(tell)\n"
        f"sys.argv = ['mcompose', *{list(arguments)!r}]\n"
        "from mcompose.cli.app import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-2] == "heavy: []", result.stderr
    return float(result.stderr.splitlines()[-1]), result.stdout


def least(*arguments: str) -> float:
    """The least of three: what else runs on the machine costs nothing here."""
    return min(run(*arguments)[0] for _ in range(3))


def test_help_takes_a_third_of_a_second():
    assert least("--help") <= 0.3


def test_a_plan_of_7b_models_takes_a_second(recipe):
    assert least("plan", str(recipe)) <= 1.0


def test_a_plan_of_70b_models_takes_three_seconds(large_recipe):
    assert least("plan", str(large_recipe)) <= 3.0


def test_inspecting_7b_models_takes_a_second(recipe):
    assert least("inspect", *(str(recipe.parent / name) for name in ("llava", "expert"))) <= 1.0


def test_the_plan_of_7b_models_counts_right(recipe):
    plan = json.loads(run("plan", str(recipe), "--json")[1])
    assert plan["format"] == "native"
    assert plan["actions"] == {"merged": 291, "copied": 395}
    # LLaVA 1.5 7B has 7,063,427,072 parameters
    assert plan["bytes_to_write"] == 2 * 7_063_427_072
    written = {job["name"]: job for job in plan["jobs"]}
    head = written["language_model.lm_head.weight"]
    assert (head["shape"], head["note"]) == ([32064, 4096], "rows 32000-32063 from sees")
    language_bytes = 2 * (32000 * 4096 * 2 + 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096))
    assert plan["bytes_to_read"] == plan["bytes_to_write"] + 2 * language_bytes


def test_the_plan_of_70b_models_counts_right(large_recipe):
    plan = json.loads(run("plan", str(large_recipe), "--json")[1])
    assert plan["actions"] == {"merged": 723}
    # Llama 2 70B has 68,976,648,192 parameters
    assert plan["bytes_to_write"] == 2 * 68_976_648_192
    assert plan["bytes_to_read"] == 5 * plan["bytes_to_write"]
