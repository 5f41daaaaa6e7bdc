"""Layers that slices move stay what they were, as the same layers stacked by hand are, or are refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from tiny_sources import tokenizer, write_recipe

from mcompose.errors import CompositionError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.arange(3, 27)[None]
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "shared_expert_intermediate_size": 16, "num_experts": 4,
}  # fmt: skip


def _deepseek() -> hf.PreTrainedModel:
    groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
    sizes = {**SIZES, "num_key_value_heads": 4}
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes, **LATENT, **EXPERTS, **groups))


def _llama4(**changes: object) -> hf.PreTrainedModel:
    sizes = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 8}
    return hf.Llama4ForCausalLM(hf.Llama4TextConfig(**{**SIZES, **sizes, **changes}))


def _gemma2() -> hf.PreTrainedModel:
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZES, head_dim=8, sliding_window=8))


def _gemma3() -> hf.PreTrainedModel:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, sliding_window_pattern=2))


def _qwen3_next(**changes: object) -> hf.PreTrainedModel:
    sizes = {**SIZES, **LINEAR, **EXPERTS, "head_dim": 8, "num_hidden_layers": 4, **changes}
    return hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**sizes))


def _qwen2_moe(**changes: object) -> hf.PreTrainedModel:
    shared = {"num_experts": 4, "shared_expert_intermediate_size": 16}
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**SIZES, **EXPERTS, **shared, **changes))


def _smollm3() -> hf.PreTrainedModel:
    return hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**SIZES, no_rope_layer_interval=2))


def _gpt2(**changes: object) -> hf.PreTrainedModel:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, **changes))


def _gemma3n() -> hf.PreTrainedModel:
    small = {"head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4}
    kinds = ["sliding_attention", "full_attention"] * 2
    config = hf.Gemma3nTextConfig(
        **SIZES,
        **small,
        layer_types=kinds,
        num_kv_shared_layers=2,
        sliding_window=8,
        activation_sparsity_pattern=[0.0] * 4,
    )
    return hf.Gemma3nForCausalLM(config)


EXACT = {
    "gemma2": (_gemma2, [(0, 2), (1, 4)], ["layer_types"]),
    "gemma2-fewer": (_gemma2, [(1, 4)], ["layer_types"]),
    "gemma3": (_gemma3, [(0, 3), (2, 4)], ["layer_types"]),
    "deepseek-behind-its-dense-layer": (_deepseek, [(0, 3), (1, 4)], []),
    "deepseek-with-its-dense-layer-twice": (_deepseek, [(0, 1), (0, 4)], []),
    "llama4-all-experts": (
        lambda: _llama4(interleave_moe_layer_step=1),
        [(0, 2), (1, 4)],
        ["layer_types", "moe_layers"],
    ),
    "llama4-every-second": (
        lambda: _llama4(interleave_moe_layer_step=2),
        [(0, 3), (1, 4)],
        ["layer_types", "moe_layers"],
    ),
    "qwen3-next": (_qwen3_next, [(0, 4), (2, 4)], ["layer_types"]),
    "qwen2-moe-dense-layers": (lambda: _qwen2_moe(mlp_only_layers=[1]), [(0, 2), (1, 4)], []),
    "smollm3": (_smollm3, [(0, 3), (2, 4)], ["no_rope_layers", "layer_types"]),
    "gpt2": (_gpt2, [(0, 2), (1, 4)], []),
}
REFUSED = {
    "deepseek": (_deepseek, [(0, 2), (0, 4)], "first_k_dense_replace"),
    "qwen2-moe-period": (lambda: _qwen2_moe(decoder_sparse_step=2), [(0, 2), (1, 4)], "decoder_sparse_step"),
    "gpt2-scaled": (
        lambda: _gpt2(scale_attn_by_inverse_layer_idx=True), [(0, 2), (1, 4)], "scale_attn_by_inverse_layer_idx",
    ),
    "gemma3n": (_gemma3n, [(0, 2), (0, 4)], "num_kv_shared_layers"),
}  # fmt: skip


def _write(folder: Path, make, dropped=()) -> Path:
    torch.manual_seed(1)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in dropped}))
    return folder


def _recipe(folder: Path, ranges) -> Path:
    slices = [{"sources": [{"source": "source", "layer_range": list(r)}]} for r in ranges]
    sources = [{"name": "source", "model": "local:source"}]
    return write_recipe(
        folder / "recipe.yaml",
        sources=sources,
        merge={"method": "passthrough", "slices": slices},
        output={"dir": "out"},
    )


def _load(folder: Path) -> hf.PreTrainedModel:
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    return model.eval()


def _by_hand(folder: Path, ranges) -> hf.PreTrainedModel:
    """The source's own layer objects in their new places; the decoder's lists by layer follow them."""
    model = _load(folder)
    places = [layer for first, last in ranges for layer in range(first, last)]
    decoder = model.model if hasattr(model, "model") else model.transformer
    name = "layers" if hasattr(decoder, "layers") else "h"
    layers = torch.nn.ModuleList([copy.deepcopy(getattr(decoder, name)[layer]) for layer in places])
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    setattr(decoder, name, layers)
    for key in ("layer_types", "no_rope_layers"):
        if getattr(model.config, key, None):
            setattr(model.config, key, [getattr(model.config, key)[layer] for layer in places])
    model.config.num_hidden_layers = len(places)
    return model


@torch.no_grad()
def _logits(model: hf.PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", EXACT)
def test_moved_layers_give_the_logits_of_the_same_layers_stacked_by_hand(tmp_path, name):
    make, ranges, dropped = EXACT[name]
    source = _write(tmp_path / "source", make, dropped)
    merge(_recipe(tmp_path, ranges))
    torch.testing.assert_close(
        _logits(_load(tmp_path / "out")), _logits(_by_hand(source, ranges)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_follow_their_layers_are_refused_by_name(tmp_path, name):
    make, ranges, setting = REFUSED[name]
    _write(tmp_path / "source", make)
    recipe = _recipe(tmp_path, ranges)
    for step in (plan, merge):
        with pytest.raises(CompositionError, match=setting) as refused:
            step(recipe)
        assert "merge.slices" in refused.value.message
    assert not (tmp_path / "out").exists()
