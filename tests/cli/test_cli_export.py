"""``export lora``: what PEFT loads answers as the model does, and misses what the report says that it misses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command_line import run
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import TINY, fill, tiny_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from mcompose.checkpoint import PEFT_PREFIX, open_adapter, open_checkpoint
from mcompose.errors import CompositionError, RequestError
from mcompose.methods import factorise
from mcompose.pipeline.export_adapter import export_adapter
from mcompose.refs import ModelRef

IDS = torch.arange(3, 20)[None]


def ref(folder):
    return ModelRef("local", str(folder))


def make_model(kind):
    """A tiny model of a family of the other tests, or one of two that are here alone."""
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    elif kind == "mixtral":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes))
    elif kind == "tied":
        model = LlamaForCausalLM(
            type(TINY["llama"]()).from_dict({**TINY["llama"]().to_dict(), "tie_word_embeddings": True})
        )
    else:
        return tiny_model(kind)
    fill(model, 0)
    return model.eval()


def write_pair(folder, kind="llama", *, tables=False, biases=False):
    """A base, and a fine-tune whose matrices change by what has singular values 1, 1/2, 1/4, ..."""
    model = make_model(kind)
    model.save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(1)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (parameter is not embedding or tables):
                size = min(parameter.shape)
                noise = torch.randn(parameter.shape, generator=generator)
                u, _, v = torch.linalg.svd(noise, full_matrices=False)
                parameter += 0.1 * u * 0.5 ** torch.arange(size) @ v
            if name.endswith("norm.weight") or (biases and name.endswith("bias")):
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "tuned")
    return model.eval()


def logits_of(folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(IDS).logits


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tables": True}),
        ("qwen2", {"biases": True}),
        ("gpt2", {}),
        ("tied", {}),
        ("tied", {"tables": True}),
    ],
    ids=str,
)
def test_peft_gives_the_models_own_logits_at_full_rank(tmp_path, kind, settings):
    tuned = write_pair(tmp_path, kind, **settings)
    report = export_adapter(ref(tmp_path / "tuned"), base=ref(tmp_path / "base"), output=tmp_path / "adapter", rank=999)
    assert report.error < 5e-6, "missing: the rounding of float32, and singular values that are rounding"
    with torch.no_grad():
        wanted = tuned(IDS).logits
    # Rounding of factors that are multiplied at run time, in place of a folded matrix.
    torch.testing.assert_close(logits_of(tmp_path), wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


def test_the_error_is_that_of_the_weights(tmp_path, monkeypatch, capsys):
    tuned = write_pair(tmp_path)
    paths = [tmp_path / "tuned", "--base", tmp_path / "base", "-o", tmp_path / "adapter"]
    assert run(["export", "lora", *paths, "--energy", "0.9", "--json"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    folded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).state_dict()
    missed = changed = 0.0
    for name, value in tuned.state_dict().items():
        delta = value - start[name]
        if value.ndim == 2 and bool(delta.any()):
            missed += float((value - folded[name]).square().sum())
            changed += float(delta.square().sum())
        else:
            assert torch.equal(folded[name], value), "norms are stored whole"
    assert report["error"] == pytest.approx((missed / changed) ** 0.5, rel=1e-4)
    # 1 + 1/4 of 4/3 is 0.9375: two singular values are the fewest that keep 0.9.
    assert {row["rank"] for row in report["matrices"]} == {2}
    assert report["error"] == pytest.approx(0.25, rel=1e-2)


def test_a_model_that_equals_its_base_has_nothing_to_export(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    with pytest.raises(CompositionError, match="nothing to export"):
        export_adapter(ref(tmp_path / "base"), base=ref(tmp_path / "base"), output=tmp_path / "adapter", rank=2)
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(RequestError, match="How much"):
        export_adapter(ref(tmp_path / "base"), base=ref(tmp_path / "base"), output=tmp_path / "adapter")


def test_what_no_adapter_can_hold_is_refused_by_name(tmp_path):
    tiny_model("llava").save_pretrained(tmp_path / "sees")
    write_pair(tmp_path)
    with pytest.raises(CompositionError, match="which the base does not have"):
        export_adapter(ref(tmp_path / "sees"), base=ref(tmp_path / "base"), output=tmp_path / "adapter", rank=2)
    write_pair(tmp_path / "gpt2", "gpt2", tables=True)
    with pytest.raises(CompositionError, match=r"'transformer\.wte' differs and is the head too"):
        export_adapter(
            ref(tmp_path / "gpt2/tuned"), base=ref(tmp_path / "gpt2/base"), output=tmp_path / "adapter", rank=2
        )
    mixture = make_model("mixtral")
    mixture.save_pretrained(tmp_path / "experts")
    fill(mixture, 1)
    mixture.save_pretrained(tmp_path / "other")
    with pytest.raises(CompositionError, match=r"'model\..*' (differs|of the base has another name)"):
        export_adapter(ref(tmp_path / "other"), base=ref(tmp_path / "experts"), output=tmp_path / "adapter", rank=2)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)], ids=str)
def test_factors_are_the_best_of_their_rank(shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    found = factorise(matrix, rank=5)
    assert found.b.shape == (shape[0], 5)
    np.testing.assert_allclose(found.b @ found.a, u[:, :5] * s[:5] @ v[:5], atol=1e-5)
    assert found.error == pytest.approx(float(np.sqrt((s[5:] ** 2).sum())), rel=1e-6)
    np.testing.assert_allclose((found.b**2).sum(0), (found.a**2).sum(1), rtol=1e-5)


def test_files_hold_nothing_but_the_adapter(tmp_path):
    write_pair(tmp_path)
    export_adapter(ref(tmp_path / "tuned"), base=ref(tmp_path / "base"), output=tmp_path / "adapter", rank=3)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    shapes = {
        key: tuple(value.shape) for key, value in load_file(tmp_path / "adapter/adapter_model.safetensors").items()
    }
    assert all(3 in shape for key, shape in shapes.items() if "lora_" in key)


def test_the_merge_engine_folds_the_adapter_to_the_model(tmp_path):
    # Folded by the merge engine, the adapter of full rank gives the model back.
    for settings in ({}, {"tables": True}):
        folder = tmp_path / str(len(settings))
        write_pair(folder, "tied", **settings)
        export_adapter(ref(folder / "tuned"), base=ref(folder / "base"), output=folder / "adapter", rank=999)
        adapter = open_adapter(folder / "adapter").bind(
            open_checkpoint(ref(folder / "base")).tensors, tied=("model.embed_tokens.weight", "lm_head.weight")
        )
        assert adapter.unused() == ((f"{PEFT_PREFIX}lm_head.weight",) if settings else ())
        assert not adapter.unties
        wanted = load_file(folder / "tuned/model.safetensors")
        for key, fold in adapter.folds.items():
            start = load_file(folder / "base/model.safetensors")[key].numpy()
            np.testing.assert_allclose(fold.apply(start), wanted[key].numpy(), atol=1e-5)
