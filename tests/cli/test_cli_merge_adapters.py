"""``merge-adapters`` against PEFT's own merge of adapters, and RobustMerge against the formula of its code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command_line import run
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from mcompose.errors import CheckpointError, RequestError
from mcompose.methods import robust_merge, shorten
from mcompose.pipeline.merge_adapters import AdapterMerge, merge_adapters
from mcompose.refs import ModelRef

QKV, MLP = ["q_proj", "v_proj"], ["v_proj", "down_proj"]


def ref(folder):
    return ModelRef("local", str(folder))


def write_adapter(folder, name, *, rank, targets, seed, **settings):
    """An adapter of the folder's base, with factors that are not zero."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=targets, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    tiny_model("llama").save_pretrained(folder / "base")
    write_adapter(folder, "first", rank=4, targets=QKV, seed=1, lora_alpha=8)
    write_adapter(folder, "second", rank=3, targets=MLP, seed=2, lora_alpha=5, use_rslora=True)
    write_adapter(folder, "third", rank=4, targets=QKV, seed=3, lora_alpha=8)
    return folder


def folded(home, *adapters):
    """State of the base with an adapter folded into it by PEFT."""
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapters[0])).merge_and_unload().state_dict()


def changes(home, adapter):
    start = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32).state_dict()
    return {key: value - start[key] for key, value in folded(home, adapter).items()}


def test_adapters_of_other_ranks_and_layers_add_up_as_peft_folds_each(home, tmp_path, monkeypatch, capsys):
    paths = [home / "first", home / "second", "-o", tmp_path / "both"]
    assert run(["merge-adapters", *paths, "--weight", "0.7", "--weight", "-0.4", "--json"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["rank"] for row in report["matrices"]} == {3, 4, 7}
    assert report["error"] == 0
    first, second, both = (changes(home, one) for one in (home / "first", home / "second", tmp_path / "both"))
    for key, value in both.items():
        torch.testing.assert_close(value, 0.7 * first[key] - 0.4 * second[key], rtol=0, atol=1e-6)


def test_a_smaller_rank_is_the_best_one_as_in_peft(home, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(home / "first"), adapter_name="first")
    model.load_adapter(str(home / "third"), adapter_name="third")
    model.add_weighted_adapter(["first", "third"], [0.5, 0.5], "sum", combination_type="svd", svd_rank=3)
    model.set_adapter("sum")
    wanted = model.merge_and_unload().state_dict()
    how = AdapterMerge(rank=3)
    report = merge_adapters([ref(home / "first"), ref(home / "third")], output=tmp_path / "small", how=how)
    assert {one.rank for one in report.matrices} == {3}
    found = folded(home, tmp_path / "small")
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    exact = [changes(home, home / name) for name in ("first", "third")]
    small = changes(home, tmp_path / "small")
    missed = sum(float((small[k] - (exact[0][k] + exact[1][k]) / 2).square().sum()) for k in small)
    whole = sum(float(((exact[0][k] + exact[1][k]) / 2).square().sum()) for k in small)
    assert report.error == pytest.approx((missed / whole) ** 0.5, rel=1e-3)


def clamped(values, share):
    smallest = np.sort(values, axis=1)[:, int(values.shape[1] * share)]
    return np.maximum(values, smallest[:, None])


def test_robustmerge_is_the_formula_of_its_code(home, tmp_path):
    # Written out: T adapters, 0.2 of every factor kept, the quantile of 0.8 as the smallest coefficient, factor 2.
    files = [load_file(home / name / "adapter_model.safetensors") for name in ("first", "third")]
    report = merge_adapters(
        [ref(home / "first"), ref(home / "third")], output=tmp_path / "robust", how=AdapterMerge("robustmerge")
    )
    found = load_file(tmp_path / "robust/adapter_model.safetensors")
    assert len(report.matrices) * 2 == len(found) == len(files[0])
    for key in (key for key in files[0] if "lora_A" in key):
        pruned, scale = {}, None
        for part in (key, key.replace("lora_A", "lora_B")):
            stack = torch.stack([file[part] for file in files])
            flat = stack.abs().reshape(2, -1)
            threshold, _ = flat.kthvalue(int(flat.shape[1] * 0.8), dim=1, keepdim=True)
            pruned[part] = stack * (stack.abs() >= threshold[:, :, None])
            if part == key:
                shares = stack.abs().sum(-1) / pruned[part].abs().sum(-1)
                scale = torch.from_numpy(clamped(shares.numpy(), 0.8))[:, None, :]
        other = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(found[key], (2 * pruned[key]).sum(0))
        torch.testing.assert_close(found[other], (2 * scale * pruned[other]).sum(0) / scale.sum(0))
    config = json.loads((tmp_path / "robust/adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 2, "the scale of the sources"


def test_robustmerge_of_a_direction_that_is_pruned_away_is_finite():
    first = np.float32([[9, 8, 7, 6], [0.1, 0.1, 0.1, 0.1]])
    a, b = robust_merge([first, first], [np.ones((3, 2), np.float32)] * 2, density=0.375)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, 4 * first * [[1], [0]])


def test_what_does_not_belong_together_is_refused(home, tmp_path):
    pair = [ref(home / "first"), ref(home / "second")]
    with pytest.raises(CheckpointError, match="other layers, ranks or scales"):
        merge_adapters(pair, output=tmp_path / "out", how=AdapterMerge("robustmerge"))
    with pytest.raises(RequestError, match="2 adapters have 1 weights"):
        merge_adapters(pair, output=tmp_path / "out", how=AdapterMerge(weights=(1.0,)))
    other = write_adapter(home, "elsewhere", rank=2, targets=QKV, seed=5)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "another"}))
    with pytest.raises(CheckpointError, match="was trained on"):
        merge_adapters([pair[0], ref(other)], output=tmp_path / "out")
    whole = write_adapter(home, "whole", rank=2, targets=QKV, seed=6, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"'.*lm_head.*' .* is not a factor"):
        merge_adapters([pair[0], ref(whole)], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shortened_factors_are_the_best_of_their_rank():
    generator = np.random.default_rng(0)
    b, a = generator.standard_normal((20, 7)), generator.standard_normal((7, 30))
    u, s, v = np.linalg.svd(b @ a, full_matrices=False)
    found = shorten(b, a, rank=4)
    np.testing.assert_allclose(found.b @ found.a, u[:, :4] * s[:4] @ v[:4], atol=1e-5)
    assert found.error == pytest.approx(float(np.sqrt((s[4:] ** 2).sum())))
    assert shorten(b, np.concatenate([a[:6], a[5:6]])).rank == 6, "directions that coincide are counted once"
