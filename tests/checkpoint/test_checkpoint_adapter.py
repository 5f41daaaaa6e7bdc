"""Adapters fold to what PEFT's own merge gives, and refuse what cannot be folded exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcompose.checkpoint import open_adapter, open_checkpoint, read_float32
from mcompose.checkpoint.adapter_keys import split_key
from mcompose.checkpoint.fold import ROW_BLOCK
from mcompose.errors import CheckpointError, NumericsError

VOCAB, WIDTH = 40, 16


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True, tie_word_embeddings=False))


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False))


def _llava():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24}
    vision = {"model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 24}
    one = {"num_hidden_layers": 1, "num_attention_heads": 2}
    image = {"image_size": 8, "patch_size": 4, "projection_dim": 16}
    config = LlavaConfig(
        text_config={**text, **one, "num_key_value_heads": 1},
        vision_config={**vision, **one, **image},
        image_token_index=3,
    )
    return LlavaForConditionalGeneration(config)


def _train(model, folder, seed=0, **options):
    """An adapter whose every trainable value is random, saved; returns the model that PEFT merges it into."""
    import torch
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # transformers starts norms at one and biases at zero
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "base")
    peft = get_peft_model(model, LoraConfig(init_lora_weights=False, **options))
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            scale = 0.5 if "lora_magnitude" in name else 0.2
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + scale * (noise.abs() if "lora_magnitude" in name else noise)
    peft.save_pretrained(folder / "adapter")
    merged = peft.merge_and_unload()
    merged.save_pretrained(folder / "merged")


def _largest_difference(folder) -> tuple[float, int]:
    base, merged = open_checkpoint(folder / "base"), open_checkpoint(folder / "merged")
    adapter = open_adapter(folder / "adapter").bind(base.tensors)
    assert adapter.unused() == ()
    assert list(merged.tensors) == list(base.tensors)
    worst, changed = 0.0, 0
    for key, entry in base.tensors.items():
        ours, fold = read_float32(entry), adapter.fold_for(key)
        if fold is not None:
            whole, changed = fold.apply(ours), changed + 1
            cut = [(0, 3), (3, entry.shape[0])]
            pieces = [fold.apply(read_float32(entry, rows), rows) for rows in cut]
            assert np.array_equal(np.concatenate(pieces), whole), "the cut into rows shows in the bits"
            assert not np.array_equal(whole, ours)
            ours = whole
        worst = max(worst, float(np.abs(ours - read_float32(merged.tensors[key])).max(initial=0)))
    return worst, changed


OPTIONS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "all-linear": {"r": 2, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {"layers.0.mlp.up_proj": 32},
    },
    "modules-to-save": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "bias-all": {"r": 4, "target_modules": ["q_proj"], "bias": "all"},
    "bias-lora-only": {"r": 4, "target_modules": ["q_proj"], "bias": "lora_only"},
    "lora-bias": {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "dora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dora-rslora": {"r": 4, "lora_alpha": 5, "target_modules": "all-linear", "use_dora": True, "use_rslora": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_llama_adapters_fold_as_peft_merges_them(tmp_path, name):
    _train(_llama(), tmp_path, **OPTIONS[name])
    worst, changed = _largest_difference(tmp_path)
    assert changed >= 4
    assert worst <= 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plain", "all-linear", "dora"])
def test_llava_adapters_fold_over_both_spellings_of_its_keys(tmp_path, name):
    _train(_llava(), tmp_path, **OPTIONS[name])
    worst, changed = _largest_difference(tmp_path)
    assert changed >= 2
    assert worst <= 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_layers_stored_transposed_fold_whatever_the_config_says(tmp_path, fan_in_fan_out):
    _train(_gpt2(), tmp_path, r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=fan_in_fan_out)
    worst, changed = _largest_difference(tmp_path)
    assert changed == 3
    assert worst <= 1e-6


def _by_hand(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def _base(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return open_checkpoint(folder).tensors


Q = "layers.0.self_attn.q_proj"
LORA_Q = f"base_model.model.{Q}.lora"
A = np.array([[1, 0, 2], [0, 1, -1]], np.float32)
B = np.array([[1, 2], [3, 4]], np.float32)


def _pair(path):
    return {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}


def test_the_product_by_hand(tmp_path):
    base = _base(tmp_path / "base", **{f"model.{Q}.weight": np.ones((2, 3), np.float32)})
    adapter = open_adapter(_by_hand(tmp_path / "a", _pair(f"model.{Q}"))).bind(base)
    fold = adapter.fold_for(f"model.{Q}.weight")
    # s = 4 / 2 = 2; B @ A = [[1, 2, 0], [3, 4, 2]]
    assert fold.delta().tolist() == [[2, 4, 0], [6, 8, 4]]
    assert fold.apply(np.ones((1, 3), np.float32), (1, 2)).tolist() == [[7, 9, 5]]
    assert fold.delta((1, 1)).shape == (0, 3)
    assert fold.note == "LoRA rank 2, scale 2"
    assert adapter.fold_for("another.weight") is None


def test_every_cut_gives_the_same_bits(tmp_path):
    generator = np.random.default_rng(0)
    rows, columns, rank = 3 * ROW_BLOCK + 5, 37, 16
    factors = {
        f"base_model.model.{Q}.lora_A.weight": generator.standard_normal((rank, columns), np.float32),
        f"base_model.model.{Q}.lora_B.weight": generator.standard_normal((rows, rank), np.float32),
    }
    base = _base(tmp_path / "base", **{f"{Q}.weight": np.zeros((rows, columns), np.float32)})
    fold = open_adapter(_by_hand(tmp_path / "a", factors, r=rank)).bind(base).fold_for(f"{Q}.weight")
    whole = fold.delta()
    expected = factors[f"base_model.model.{Q}.lora_B.weight"].astype(np.float64) @ factors[
        f"base_model.model.{Q}.lora_A.weight"
    ].astype(np.float64)
    assert np.abs(whole - expected * 4 / rank).max() < 1e-5
    for cut in (1, 7, 50, 64, 65, 130):
        pieces = [fold.delta((start, min(start + cut, rows))) for start in range(0, rows, cut)]
        assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize(
    ("file_key", "module"),
    [
        (f"language_model.model.{Q}.weight", f"model.language_model.{Q}"),
        (f"model.language_model.{Q}.weight", f"language_model.model.{Q}"),
        (f"language_model.model.{Q}.weight", f"model.{Q}"),
        (f"thinker.model.{Q}.weight", f"model.{Q}"),
        (f"vision_tower.vision_model.encoder.{Q}.weight", f"model.vision_tower.encoder.{Q}"),
    ],
)
def test_an_adapter_finds_its_tensor_under_another_spelling(tmp_path, file_key, module):
    others = {f"talker.model.{Q}.weight": np.zeros((2, 3), np.float32)}
    base = _base(tmp_path / "base", **{file_key: np.ones((2, 3), np.float32)}, **others)
    adapter = open_adapter(_by_hand(tmp_path / "a", _pair(module))).bind(base)
    assert list(adapter.folds) == [file_key]


def test_the_exact_spelling_wins_over_a_similar_one(tmp_path):
    keys = (f"model.{Q}.weight", f"language_model.model.{Q}.weight")
    base = _base(tmp_path / "base", **{key: np.ones((2, 3), np.float32) for key in keys})
    assert list(open_adapter(_by_hand(tmp_path / "a", _pair(f"model.{Q}"))).bind(base).folds) == [keys[0]]
    with pytest.raises(CheckpointError, match=r"several tensors of its base: .*language_model"):
        open_adapter(_by_hand(tmp_path / "a", _pair(Q))).bind(base)


def test_a_tensor_that_fits_nothing_is_named(tmp_path):
    base = _base(tmp_path / "base", **{f"model.{Q}.weight": np.ones((2, 3), np.float32)})
    tensors = {**_pair(f"model.{Q}"), "base_model.model.lm_head.weight": np.ones((2, 3), np.float32)}
    with pytest.raises(CheckpointError, match=r"do not fit a tensor of its base: lm_head\.weight"):
        open_adapter(_by_hand(tmp_path / "a", tensors)).bind(base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "fused expert"),
        ({"trainable_token_indices": [1]}, "single token rows"),
        ({"alora_invocation_tokens": [1]}, "part of the text"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised with 'pissa_niter_4'"),
        ({"r": 0}, "its 'r' must be a positive number, not 0"),
        ({"lora_alpha": "high"}, "its 'lora_alpha' must be a positive number, not 'high'"),
    ],
)
def test_adapters_that_are_no_plain_product_are_refused(tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(_by_hand(tmp_path / "a", _pair(f"model.{Q}"), **config))


def _without(tensors, part):
    return {key: value for key, value in tensors.items() if part not in key}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (_without(_pair(Q), "lora_B"), {}, "one of its two factors is missing"),
        (_pair(Q), {"r": 3}, "has rank 3"),
        (_pair(Q), {"rank_pattern": {"q_proj": 5}}, "has rank 5"),
        (_pair(Q), {"rank_pattern": {"(": 5}}, "invalid pattern"),
        (_pair(Q), {"alpha_pattern": {"q_proj": -1}}, "must be positive for 'q_proj', not -1"),
        ({**_pair(Q), f"{LORA_Q}_magnitude_vector": np.ones(3, np.float32)}, {}, "magnitude has shape"),
        ({f"base_model.model.{Q}.weight": np.ones((4, 3), np.float32)}, {}, r"brings shape \(4, 3\) for \(2, 3\)"),
        ({key: value[..., None, None] for key, value in _pair(Q).items()}, {}, "not convolutions"),
        ({**_without(_pair(Q), "lora_B"), f"{LORA_Q}_B.weight": np.ones((5, 2), np.float32)}, {}, "do not make"),
        ({f"base_model.model.{Q}.weight": np.ones((2, 3), np.int8)}, {}, "is I8"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path, tensors, config, message):
    base = _base(tmp_path / "base", **{f"{Q}.weight": np.ones((2, 3), np.float32)})
    with pytest.raises(CheckpointError, match=message):
        open_adapter(_by_hand(tmp_path / "a", tensors, **config)).bind(base)


def test_dora_cannot_scale_a_row_of_zeros(tmp_path):
    tensors = {**_pair(Q), f"base_model.model.{Q}.lora_magnitude_vector": np.ones(2, np.float32)}
    weight = np.array([[-2, -4, 0], [1, 1, 1]], np.float32)  # the first row is minus its delta
    base = _base(tmp_path / "base", **{f"{Q}.weight": weight})
    fold = open_adapter(_by_hand(tmp_path / "a", tensors)).bind(base).fold_for(f"{Q}.weight")
    with pytest.raises(NumericsError, match="length zero"):
        fold.apply(weight)


def test_a_pickled_or_missing_adapter_is_refused(tmp_path):
    folder = _by_hand(tmp_path / "a", _pair(Q))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        open_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"does not have adapter_model\.safetensors"):
        open_adapter(folder)
    with pytest.raises(CheckpointError, match=r"does not have adapter_config\.json"):
        open_adapter(tmp_path)


def test_an_unbound_adapter_tells_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="bind"):
        open_adapter(_by_hand(tmp_path / "a", _pair(Q))).fold_for("x")


def test_keys_come_apart():
    assert split_key("base_model.model.model.norm.weight") == ("model.norm.weight", "replacement")
    assert split_key("base_model.model.q.base_layer.bias") == ("q.bias", "replacement")
    assert split_key("base_model.model.h.modules_to_save.weight") == ("h.weight", "replacement")
    assert split_key("base_model.model.e.lora_embedding_A") == ("e", "embedding_A")
