"""Adapters from recipe to answers: new ones change nothing, LoRAs become experts, caches, training, other features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from tiny_experts import write_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor, Qwen2ForCausalLM

from mcompose.errors import CheckpointError, CompositionError, RecipeError
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 84, 3), np.uint8))
SOUND = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
MODES = ("token", "prefix", "causal", "merged")
SETS = {
    "mm": {"experts": 4, "rank": 2},
    "mv": {"modalities": ["image"], "experts": 3, "rank": 2, "targets": ["q_proj", "down_proj"]},
    "mt": {"modalities": ["text"], "experts": 2, "rank": 3, "layers": [1, 1], "normalise": "none"},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("adapters"))
    for name in ("clip", "pix2struct"):
        write_expert(name, folder / name)
    for number, rank in enumerate((2, 4)):
        write_lora(folder / f"lora-{number}", folder / "base", rank=rank, seed=number)
    return folder


def write_lora(where: Path, base: Path, *, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    targets = ["q_proj", "up_proj"] if seed else ["q_proj"]
    model = get_peft_model(
        Qwen2ForCausalLM.from_pretrained(base), LoraConfig(r=rank, lora_alpha=2 * rank + 1, target_modules=targets)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(where)


def recipe(folder: Path, name: str, adapters, *, sources=("sees", "hears"), **compose) -> Path:
    return write_recipe(
        folder / f"{name}.yaml",
        base="local:base",
        sources=[{"name": one, "model": f"local:{one}"} for one in sources],
        merge={"method": "linear", "seed": 3},
        compose={"adapters": adapters, **compose},
        output={"dir": name, "format": "composed"},
    )


@pytest.fixture(scope="session")
def fresh(folder: Path) -> Path:
    return merge(recipe(folder, "fresh", SETS)).result.folder


@pytest.fixture(scope="session")
def plain(folder: Path) -> Path:
    return merge(recipe(folder, "plain", {})).result.folder


def loaded(where: Path, **kwargs):
    model = AutoModelForMultimodalLM.from_pretrained(where, trust_remote_code=False, **kwargs).eval()
    return model, AutoProcessor.from_pretrained(where, trust_remote_code=False)


def wake(model, seed=0):
    """Gives the second factors values, so that adapters do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def last_logits(model, **inputs):
    return model(**inputs).logits[:, -1]


def test_new_adapters_change_nothing_at_all(fresh, plain):
    model, processor = loaded(fresh)
    other, _ = loaded(plain)
    inputs = processor(text=["a <image> b <audio>", "c <image>"], images=[PICTURE, PICTURE], audio=[SOUND])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, other(**inputs).logits)


def test_its_tensors_and_ledger(fresh):
    state = load_file(fresh / "model.safetensors")
    down = state["model.language_model.layers.0.mlp.gate_proj.adapters.mm.down"]
    assert down.shape == (8, 32)
    assert 0 < float(down.abs().max()) <= 32**-0.5
    assert not state["model.language_model.layers.0.mlp.gate_proj.adapters.mm.up"].any()
    assert not [key for key in state if ".adapters.mt." in key and ("layers.0" in key or key.endswith("scale"))]
    assert [key for key in state if "k_proj.adapters.mv" in key] == []
    rows = {row["name"]: row for row in json.loads((fresh / "mcompose" / "ledger.json").read_text())["tensors"]}
    row = rows["model.language_model.layers.0.mlp.gate_proj.adapters.mm.router"]
    assert (row["part"], row["action"], row["note"]) == ("adapter:mm", "created", "new: drawn by the seed")


@pytest.mark.parametrize("mode", MODES)
def test_cache_and_static_cache_and_padding_give_the_same_answer(mode, folder, tmp_path):
    path = recipe(folder, f"mode-{mode}", {"mm": {"mode": mode, "experts": 3}, "mt": {**SETS["mt"], "mode": mode}})
    model, processor = loaded(merge(path).result.folder)
    wake(model)
    processor.tokenizer.padding_side = "left"
    inputs = processor(text=["a <image> b c", "<image> d"], images=[PICTURE, PICTURE])
    steps = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    steps["suppress_tokens"] = [19, 20]  # placeholders, which have rows in this small table
    dynamic = model.generate(**inputs, **steps, do_sample=False)
    static = model.generate(**inputs, **steps, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic.sequences, static.sequences)
    for one, other in zip(dynamic.logits, static.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # The same, read at once: what was generated stands behind the prompt.
    length = inputs["input_ids"].shape[1]
    tokens = dynamic.sequences[:, :-1]
    grown = {"input_ids": tokens, "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)}
    media = {key: value for key, value in inputs.items() if key.startswith("sees__")}
    prompt = torch.arange(tokens.shape[1])[None].expand(2, -1) < length
    with torch.no_grad():
        whole = model(**grown, **media, prompt_mask=prompt).logits
    for step, found in enumerate(dynamic.logits):
        torch.testing.assert_close(found, whole[:, length - 1 + step], atol=1e-4, rtol=1e-4)
    alone = processor(text="<image> d", images=[PICTURE])
    torch.testing.assert_close(dynamic.logits[0][1], last_logits(model, **alone)[0], atol=1e-4, rtol=1e-4)
    beams = model.generate(**inputs, num_beams=3, max_new_tokens=3, do_sample=False)
    again = [
        model.generate(
            **processor(text=text, images=[PICTURE]), num_beams=3, max_new_tokens=3, do_sample=False
        )[0, -3:]
        for text in ("a <image> b c", "<image> d")
    ]  # fmt: skip
    assert torch.equal(beams[:, -3:], torch.stack(again))


@pytest.mark.parametrize("mode", ["prefix", "merged"])
def test_labels_tell_the_prompt_in_training(mode, folder):
    path = recipe(folder, f"labels-{mode}", {"mm": {"mode": mode, "experts": 3}})
    model, processor = loaded(merge(path).result.folder)
    wake(model)
    inputs = processor(text="a <image> b c d", images=[PICTURE])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    prompt = labels == -100
    with torch.no_grad():
        told = model(**inputs, labels=labels).logits
        assert torch.equal(told, model(**inputs, prompt_mask=prompt).logits)
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, -1] += 1
        after = model(**changed, labels=labels).logits
    torch.testing.assert_close(after[:, :-1], told[:, :-1], atol=1e-6, rtol=1e-6)


def test_a_continued_cache_without_its_states_is_refused(folder):
    model, processor = loaded(merge(recipe(folder, "states", {"mm": {"mode": "prefix", "experts": 2}})).result.folder)
    inputs = processor(text="a b c")
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
        del cache.adapter_states
        with pytest.raises(ValueError, match="this cache does not hold it"):
            model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)


def test_checkpointing_recomputes_each_pass_as_it_was(fresh):
    model, processor = loaded(fresh)
    wake(model).train()
    batches = [processor(text="a <image> b", images=[PICTURE]), processor(text="b c d e")]

    def gradients(checkpointed):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        total = sum(model(**batch, labels=batch["input_ids"], use_cache=False).loss for batch in batches)
        total.backward()
        model.gradient_checkpointing_disable()
        return {
            name: p.grad.clone() for name, p in model.named_parameters() if ".adapters." in name and p.grad is not None
        }

    plainly, again = gradients(False), gradients(True)
    assert list(plainly) == list(again)
    for name, gradient in plainly.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)


def test_half_precision_and_figures(fresh):
    model, processor = loaded(fresh, dtype=torch.bfloat16)
    inputs = processor(text="a <image> b", images=[PICTURE])
    found = wake(model).train()(**inputs).adapter_figures
    assert list(found) == ["mm", "mv", "mt"]
    assert list(found["mm"]) == ["image", "text"]
    assert list(found["mv"]) == ["image"]
    shares = found["mm"]["image"]["share"]
    assert shares.shape == (4,)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert 0 < float(found["mm"]["text"]["entropy"]) <= np.log(4) + 1e-6


def test_saved_and_loaded_again_it_is_the_same(fresh, tmp_path):
    model, processor = loaded(fresh)
    wake(model).save_pretrained(tmp_path)
    inputs = processor(text="a <image>", images=[PICTURE])
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert torch.equal(last_logits(again, **inputs), last_logits(model, **inputs))


def test_loras_become_experts(folder):
    """One expert a LoRA: with the router's weight on one of them, the model is that LoRA's."""
    spec = {"init": ["local:lora-0", "local:lora-1"], "normalise": "none"}
    out = merge(recipe(folder, "from-loras", {"mm": spec}, sources=("hears",), decouple="none")).result.folder
    assert json.loads((out / "config.json").read_text())["adapters"]["mm"]["rank"] == 4
    model, processor = loaded(out)
    inputs = processor(text="a b c d e")
    layers = [module for name, module in model.named_modules() if name.endswith("adapters.mm")]
    assert len(layers) == 4  # q_proj of both, up_proj of one, in two layers
    state, table = load_file(out / "model.safetensors"), load_file(folder / "lora-1" / "adapter_model.safetensors")
    head = "model.language_model.layers.1.mlp.up_proj.adapters.mm."
    assert not state[head + "down"][:4].any()  # the first LoRA does not change it
    inner = "base_model.model.model.layers.1.mlp.up_proj."
    assert torch.equal(state[head + "down"][4:], table[inner + "lora_A.weight"])
    scaled = table[inner + "lora_B.weight"].T * (9 / 4)
    torch.testing.assert_close(state[head + "up"][4:], scaled, atol=0, rtol=1e-6)
    for chosen in range(2):
        gate = torch.nn.functional.one_hot(torch.tensor(chosen), 2).float()
        for layer in layers:
            layer._logits = lambda x, gate=gate: (gate.log().clamp(min=-1e4)).expand(*x.shape[:-1], 2)
        lora = load_file(folder / f"lora-{chosen}" / "adapter_model.safetensors")
        other, _ = loaded(out)
        with torch.no_grad():
            for name, module in other.named_modules():
                if hasattr(module, "adapters"):
                    module.adapters["mm"].up.zero_()
                    key = "base_model.model.model." + name.removeprefix("model.language_model.")
                    if f"{key}.lora_A.weight" in lora:
                        rank = lora[f"{key}.lora_A.weight"].shape[0]
                        module.weight += (
                            (2 * rank + 1) / rank * lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
                        )
        torch.testing.assert_close(last_logits(model, **inputs), last_logits(other, **inputs), atol=1e-4, rtol=1e-4)


def test_beside_groups_experts_and_mixed_encoders(folder):
    """Everything in one checkpoint; adapters that are new leave it as it is without them."""
    mix = {
        "encoders": {"clip": {"encoder": "local:clip"}, "own": {"source": "sees"}},
        "views": {"size": 28, "tiles": "2x2"},
    }
    mix["streams"] = [{"of": ["own"]}, {"of": ["clip"]}]
    rest = {"decouple": "convert", "experts": {"charts": {"encoder": "local:pix2struct"}}, "vision_mix": mix}
    sets = {**SETS, "eye": {"on": "encoder:eyes", "mode": "slot", "experts": 2, "targets": ["fc1", "fc2"]}}
    with_sets = loaded(merge(recipe(folder, "all", sets, **rest)).result.folder)
    without = loaded(merge(recipe(folder, "all-but", {}, **rest)).result.folder)
    inputs = with_sets[1](text=["a <image> b", "<audio> <image>"], images=[PICTURE, PICTURE], audio=[SOUND],
                          experts=["charts", None])  # fmt: skip
    with torch.no_grad():
        new, old = with_sets[0](**inputs).logits, without[0](**inputs).logits
    assert torch.equal(new, old)
    many = with_sets[1](text=["a <image> b"] * 40, images=[PICTURE] * 40, experts="charts")  # enough to sort by group
    model = wake(with_sets[0])
    with torch.no_grad():
        sorted_logits = model(**many).logits
        one = with_sets[1](text="a <image> b", images=[PICTURE], experts="charts")
        torch.testing.assert_close(sorted_logits[7], model(**one).logits[0], atol=2e-5, rtol=1e-4)
        assert not torch.allclose(model(**inputs).logits, old)


def test_a_carried_set_stays_where_the_language_model_stays(fresh, folder):
    path = write_recipe(
        folder / "carried.yaml",
        sources=[{"name": "all", "model": "local:fresh"}],
        merge={"method": "linear"},
        compose={"adapters": {"more": {"experts": 2}}},
        output={"dir": "carried", "format": "composed"},
    )
    state = load_file(merge(path).result.folder / "model.safetensors")
    for key, value in load_file(fresh / "model.safetensors").items():
        if ".adapters." in key:
            assert torch.equal(state[key], value), key
    assert any(".adapters.more." in key for key in state)
    several = write_recipe(
        folder / "dropped.yaml",
        base="local:base",
        sources=[{"name": "all", "model": "local:fresh"}, {"name": "feels", "model": "local:feels"}],
        merge={"method": "linear"},
        output={"dir": "dropped", "format": "composed"},
    )
    report = merge(several)
    assert any("The adapters of 'all' are left out" in text for text in report.result.warnings)
    assert not [key for key in load_file(folder / "dropped" / "model.safetensors") if ".adapters." in key]


@pytest.mark.parametrize(
    ("entry", "error", "sentence"),
    [
        ({"rank": 0}, RecipeError, "rank"),
        ({"experts": 0}, RecipeError, "experts"),
        ({"mode": "slot"}, RecipeError, "a slot holds tokens that come later"),
        ({"modalities": ["smell"]}, RecipeError, "smell"),
        ({"layers": [2, 1]}, RecipeError, r"must be \[first, last\]"),
        ({"on": "encoder:saw"}, RecipeError, "'saw' is not a source"),
        ({"on": "encoder:sees", "mode": "prefix"}, RecipeError, "has no prompt"),
        ({"init": ["local:lora-0"], "experts": 3}, RecipeError, "'init' names 1"),
        ({"init": ["local:lora-0"], "rank": 3}, RecipeError, "that of the checkpoints"),
        ({"targets": ["q_prj"]}, CompositionError, "names 'q_prj'"),
        ({"layers": [0, 2]}, CompositionError, "the last layer is 1"),
        ({"init": ["local:lora-9"]}, CheckpointError, "LoRA 1 of 'compose.adapters.mm.init'"),
        ({"on": "encoder:sees", "targets": ["gate_proj"]}, CompositionError, "beside no linear of sees"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_weights_are_read(entry, error, sentence, folder):
    with pytest.raises(error, match=sentence):
        plan(recipe(folder, "refused", {"mm": entry}))


def test_plan_counts_them(folder):
    found = plan(recipe(folder, "counted", SETS)).to_dict()["adapters"]
    assert found["mv"] == {
        "experts": 3,
        "rank": 2,
        "mode": "token",
        "linears": 4,
        "parameters": found["mv"]["parameters"],
    }
    sizes = {"q_proj": (32, 32), "down_proj": (32, 64)}
    state = {name: 6 * sum(size) + 3 * size[1] + 1 for name, size in sizes.items()}
    assert found["mv"]["parameters"] == 2 * sum(state.values())
