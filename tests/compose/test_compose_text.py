"""Merges of language models alone: other architectures, tied and untied heads, other depths, another tokenizer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_sources import BASE_ROWS, tokenizer, write_language_model, write_recipe
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mcompose.errors import CompositionError
from mcompose.pipeline.write import merge

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def write(folder: Path, model: PreTrainedModel, seed: int, *, dtype: torch.dtype = torch.float32) -> Path:
    """A fine-tune of the base that all models of one shape share."""
    with torch.no_grad():
        for index, scale in ((0, 0.1), (seed, 0.01)):
            generator = torch.Generator().manual_seed(index)
            for parameter in model.parameters():
                noise = scale * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise if index == 0 else parameter + noise)
    model.to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llama(**changes: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 64, "num_hidden_layers": 2, **SIZES, **SPECIAL, **changes}))


def merged(folder: Path, *names: str, **changes: object) -> tuple[dict[str, torch.Tensor], PreTrainedModel]:
    sources = [{"name": name, "model": f"local:{name}"} for name in names]
    whole = {"sources": sources, "merge": {"method": "linear"}, "output": {"dir": "out"}, **changes}
    merge(write_recipe(folder / "recipe.yaml", **whole))
    model, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info.values()), info
    return load_file(folder / "out/model.safetensors"), model


def test_an_architecture_with_names_of_its_own(tmp_path):
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    a = load_file(write(tmp_path / "a", GPT2LMHeadModel(config), 1) / "model.safetensors")
    b = load_file(write(tmp_path / "b", GPT2LMHeadModel(config), 2) / "model.safetensors")
    ours, _ = merged(tmp_path, "a", "b", merge={"method": "linear", "weights": {"a": 0.25, "b": 0.75}})
    assert list(ours) == list(a)
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, 0.25 * a[key] + 0.75 * b[key], rtol=1e-6, atol=1e-7, msg=key)


def test_layers_of_an_architecture_with_names_of_its_own_are_stacked(tmp_path):
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    a = load_file(write(tmp_path / "a", GPT2LMHeadModel(config), 1) / "model.safetensors")
    b = load_file(write(tmp_path / "b", GPT2LMHeadModel(config), 2) / "model.safetensors")
    slices = [{"sources": [{"source": name, "layer_range": [0, 2]}]} for name in ("a", "b")]
    ours, model = merged(tmp_path, "a", "b", merge={"method": "passthrough", "slices": slices})
    assert model.config.n_layer == 4
    assert torch.equal(ours["transformer.wpe.weight"], a["transformer.wpe.weight"])  # before the first layer
    assert torch.equal(ours["transformer.ln_f.weight"], b["transformer.ln_f.weight"])  # after the last
    for layer, (source, taken) in enumerate([(a, 0), (a, 1), (b, 0), (b, 1)]):
        for end in ("attn.c_attn.weight", "ln_1.bias", "mlp.c_proj.weight"):
            assert torch.equal(ours[f"transformer.h.{layer}.{end}"], source[f"transformer.h.{taken}.{end}"])


def test_kinds_of_layers_move_with_the_layers(tmp_path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        vocab_size=64, num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, sliding_window=4,
        **SIZES, **SPECIAL,
    )  # fmt: skip
    for seed, name in enumerate(("a", "b"), start=1):
        write(tmp_path / name, Qwen2ForCausalLM(config), seed)
    taken = [[0, 2], [1, 3]]
    slices = [{"sources": [{"source": n, "layer_range": r}]} for n, r in zip("ab", taken, strict=True)]
    _, model = merged(tmp_path, "a", "b", merge={"method": "passthrough", "slices": slices})
    assert model.config.num_hidden_layers == 4
    assert model.config.layer_types == [kinds[0], kinds[1], kinds[1], kinds[2]]


@pytest.mark.parametrize("order", [("tied", "untied"), ("untied", "tied")], ids="-".join)
def test_one_untied_head_unties_the_output(tmp_path, order):
    tied = load_file(write(tmp_path / "tied", llama(tie_word_embeddings=True), 1) / "model.safetensors")
    untied = load_file(write(tmp_path / "untied", llama(), 2) / "model.safetensors")
    _, model = merged(tmp_path, *order)
    expected = (tied["model.embed_tokens.weight"] + untied["lm_head.weight"]) / 2
    torch.testing.assert_close(model.lm_head.weight.detach(), expected)
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_tied_sources_stay_tied_over_an_untied_base(tmp_path):
    write(tmp_path / "base", llama(), 3)
    for seed, name in enumerate(("a", "b"), start=1):
        write(tmp_path / name, llama(tie_word_embeddings=True), seed)
    ours, model = merged(tmp_path, "a", "b", base="local:base")
    assert "lm_head.weight" not in ours
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_config_says_the_dtype_of_the_weights_and_not_of_the_owner(tmp_path):
    write(tmp_path / "base", llama(), 3, dtype=torch.bfloat16)
    a = load_file(write(tmp_path / "a", llama(), 1) / "model.safetensors")
    write(tmp_path / "b", llama(), 2)
    _, model = merged(tmp_path, "a", "b", base="local:base", merge={"method": "linear", "weights": {"a": 1, "b": 0}})
    assert model.dtype == torch.float32
    assert torch.equal(model.model.norm.weight, a["model.norm.weight"])


def test_the_recipe_says_whose_tokenizer_the_output_ships(tmp_path):
    write_language_model(tmp_path / "base")
    longer = write_language_model(tmp_path / "longer", change=0.05, seed=1, rows=BASE_ROWS + 8)
    tokenizer("<extra>").save_pretrained(longer)
    settings = {"method": "linear", "weights": {"base-too": 0.5, "longer": 0.5}}
    sources = [{"name": "base-too", "model": "local:base"}, {"name": "longer", "model": "local:longer"}]
    for name, rows, extra in ((None, BASE_ROWS, False), ("longer", BASE_ROWS + 8, True)):
        chosen = settings | ({"tokenizer": name} if name else {})
        ours, model = merged(tmp_path, sources=sources, merge=chosen)
        assert model.config.vocab_size == len(ours["model.embed_tokens.weight"]) == rows
        assert ("<extra>" in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()) is extra
    theirs = load_file(longer / "model.safetensors")["lm_head.weight"]
    assert torch.equal(ours["lm_head.weight"][BASE_ROWS:], theirs[BASE_ROWS:])


def test_a_native_output_cannot_ship_another_tokenizer(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": n, "model": f"local:{sources / n}"} for n in ("sees", "expert")],
        merge={"method": "linear", "tokenizer": "expert"},
        output={"dir": "out"},
    )
    with pytest.raises(CompositionError, match=r"keeps the tokenizer of 'sees'.*asks for that of 'expert'"):
        merge(recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_an_override_without_weights_stands_beside_a_merge_with_weights(tmp_path):
    a, b = (load_file(write(tmp_path / name, llama(), k) / "model.safetensors") for k, name in ((1, "a"), (2, "b")))
    settings = {
        "method": "linear",
        "weights": {"a": 0.25, "b": 0.75},
        "overrides": [
            {"match": {"layers": [1, 1]}, "weights": {"a": 1, "b": 0}},
            {"match": {"key": "*.mlp.*"}, "weights": {"a": 0, "b": 1}},
            {"match": {"part": "head"}, "method": "slerp", "parameters": {"t": 1.0}},
        ],
    }
    ours, _ = merged(tmp_path, "a", "b", merge=settings)
    for key, shares in {
        "model.layers.0.self_attn.q_proj.weight": (0.25, 0.75),
        "model.layers.1.self_attn.q_proj.weight": (1, 0),
        "model.layers.0.mlp.up_proj.weight": (0, 1),
        "model.layers.1.mlp.up_proj.weight": (0, 1),
        "lm_head.weight": (0, 1),
        "model.embed_tokens.weight": (0.25, 0.75),
    }.items():
        torch.testing.assert_close(ours[key], shares[0] * a[key] + shares[1] * b[key], rtol=1e-6, atol=1e-7, msg=key)
