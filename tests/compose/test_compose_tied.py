"""Head and embedding that are one table in the config, and two after training: the output has what was trained."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_sources import tokenizer, write_llava, write_recipe
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from mcompose.errors import RequestError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
IDS = torch.tensor([[1, 5, 9, 30, 44, 7, 8, 3, 4, 10, 63, 0]])
ATTENTION = "q_proj"
ADAPTERS = {
    "trained-embedding": {"target_modules": [ATTENTION], "modules_to_save": ["embed_tokens"]},
    "trained-head": {"target_modules": [ATTENTION], "modules_to_save": ["lm_head"]},
    "both-trained": {"target_modules": [ATTENTION], "modules_to_save": ["embed_tokens", "lm_head"]},
    "lora-on-embedding": {"target_modules": [ATTENTION, "embed_tokens"]},
    "lora-on-head": {"target_modules": [ATTENTION, "lm_head"]},
    "lora-on-both": {"target_modules": [ATTENTION, "embed_tokens", "lm_head"]},
}
FAMILIES = {
    "gemma": (  # its config leaves the tie to the class's default; embeddings are scaled
        lambda: GemmaForCausalLM(GemmaConfig(num_hidden_layers=2, head_dim=8, **SIZES, **SPECIAL)),
        {"target_modules": ["q_proj", "embed_tokens"]},
    ),
    "gpt2": (  # its embedding has another name
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **SPECIAL)),
        {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True},
    ),
    "gpt_neox": (  # its head has another name
        lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2,
                max_position_embeddings=32, tie_word_embeddings=True, **SPECIAL,
            )
        ),
        {"target_modules": ["query_key_value"], "modules_to_save": ["embed_out"]},
    ),
}  # fmt: skip


def _noise(parameters, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def _write_base(folder: Path, model: PreTrainedModel) -> Path:
    _noise(model.parameters(), 0, 0.1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True, **SIZES, **SPECIAL))


def _train(model: PreTrainedModel, folder: Path, **options: object) -> PreTrainedModel:
    """The trained model as its user has it, and its adapter on disk."""
    trained = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, **options))
    _noise((p for p in trained.parameters() if p.requires_grad), 1, 0.05)
    trained.eval().save_pretrained(folder)
    return trained


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def _adapted(folder: Path) -> Path:
    sources = [{"name": "tuned", "model": "local:base", "adapter": "local:adapter"}]
    return write_recipe(folder / "recipe.yaml", sources=sources, merge={"method": "linear"}, output={"dir": "out"})


def _written(folder: Path, loader: type = AutoModelForCausalLM) -> PreTrainedModel:
    merge(_adapted(folder))
    model, info = loader.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("together", [False, True], ids=["apart", "held-together"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_a_tied_table_gives_the_trained_logits(tmp_path, name, together):
    _write_base(tmp_path / "base", _llama())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trained = _train(base, tmp_path / "adapter", **ADAPTERS[name], ensure_weight_tying=together)
    model = _written(tmp_path)
    torch.testing.assert_close(_logits(model), _logits(trained), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is together
    assert ("lm_head.weight" in load_file(tmp_path / "out/model.safetensors")) is not together


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_tied_tables_of_other_families_are_kept_apart_too(tmp_path, family):
    make, options = FAMILIES[family]
    _write_base(tmp_path / "base", make())
    config = json.loads((tmp_path / "base/config.json").read_text())
    if family == "gemma":
        config.pop("tie_word_embeddings", None)
        (tmp_path / "base/config.json").write_text(json.dumps(config))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trained = _train(base, tmp_path / "adapter", **options)
    torch.testing.assert_close(_logits(_written(tmp_path)), _logits(trained), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["trained-embedding", "lora-on-head"])
def test_tied_tables_inside_a_multimodal_model(tmp_path, name):
    write_llava(tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    held = load_file(tmp_path / "base/model.safetensors")
    held = {key: value for key, value in held.items() if not key.endswith("lm_head.weight")}
    save_file(held, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert base.lm_head.weight is base.model.language_model.embed_tokens.weight
    trained = _train(base, tmp_path / "adapter", **ADAPTERS[name])
    model = _written(tmp_path, AutoModelForImageTextToText)
    torch.testing.assert_close(_logits(model), _logits(trained), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert not config["text_config"]["tie_word_embeddings"]


@pytest.mark.filterwarnings("ignore")
def test_the_plan_says_that_the_output_gets_a_head_of_its_own(tmp_path):
    _write_base(tmp_path / "base", _llama())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    _train(base, tmp_path / "adapter", **ADAPTERS["lora-on-embedding"])
    assert any("head of its own" in text for text in plan(_adapted(tmp_path)).blueprint.warnings)


@pytest.mark.filterwarnings("ignore")
def test_a_head_in_the_files_is_told_to_readers_that_ask_the_config(tmp_path):
    """Other readers drop the head where the config says tied; transformers compares the two tables."""
    _write_base(tmp_path / "plain", _llama())
    path = _write_base(tmp_path / "own", _llama()) / "model.safetensors"
    held = load_file(path)
    head = held["model.embed_tokens.weight"] + 0.01
    save_file({**held, "lm_head.weight": head}, path, metadata={"format": "pt"})
    sources = [{"name": name, "model": f"local:{name}"} for name in ("own", "plain")]
    merge(write_recipe(tmp_path / "r.yaml", sources=sources, merge={"method": "linear"}, output={"dir": "out"}))
    written = load_file(tmp_path / "out/model.safetensors")
    other = load_file(tmp_path / "plain/model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(written["lm_head.weight"], (head + other) / 2)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_trained_with_added_tokens(tmp_path):
    """PEFT writes each resized table three times; the first spelling is what it loads."""
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, tie_word_embeddings=False, **SIZES, **SPECIAL))
    small = _write_base(tmp_path / "small", base)
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(68)
    model.save_pretrained(tmp_path / "base")
    tokenizer("<a>", "<b>").save_pretrained(tmp_path / "base")
    trained = _train(model, tmp_path / "adapter", **ADAPTERS["both-trained"])
    assert any("original_module" in key for key in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    torch.testing.assert_close(_logits(_written(tmp_path)), _logits(trained), rtol=1e-5, atol=1e-5)
    (tmp_path / "base").rename(tmp_path / "big")
    small.rename(tmp_path / "base")
    with pytest.raises(RequestError, match="cannot be folded") as refused:
        plan(_adapted(tmp_path))
    assert "resize" in (refused.value.hint or "")
