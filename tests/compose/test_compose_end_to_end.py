"""From recipes to checkpoints that answer: values against the sources' own logits and hand-made averages."""

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_sources import BASE_ROWS, IMAGE_ID, write_recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from mcompose.compose.towers import TORCH_WORDS
from mcompose.errors import CompositionError, OutputError
from mcompose.ledger import Ledger
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge

PROMPT = "USER : <image> what is this ? ASSISTANT :"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def logits(folder: Path, picture: Image.Image | None, prompt: str = PROMPT) -> torch.Tensor:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", ["sees", "sees-it_2"])
def test_one_source_composed_gives_the_logits_of_the_source(sources, tmp_path, picture, name):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": name, "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc"},
        output={"dir": "out", "format": "composed"},
    )
    merge(recipe)
    torch.testing.assert_close(logits(tmp_path / "out", picture), logits(sources / "sees", picture), rtol=0, atol=0)


def test_a_language_model_merged_into_a_multimodal_one_keeps_its_class(sources, tmp_path, picture):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        base=f"local:{sources / 'base'}",
        sources=[
            {"name": "sees", "model": f"local:{sources / 'sees'}"},
            {"name": "expert", "model": f"local:{sources / 'expert'}"},
        ],
        merge={"method": "linear", "weights": {"sees": 0.25, "expert": 0.75}},
        output={"dir": "out"},
    )
    report = merge(recipe)
    assert report.result.ledger.output_format == "native"
    ours, sees, expert = (load_file(next(f.glob("*.safetensors"))) for f in
                          (tmp_path / "out", sources / "sees", sources / "expert"))  # fmt: skip
    assert list(ours) == list(sees)
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    for key, tensor in ours.items():
        if not key.startswith("language_model."):
            assert torch.equal(tensor, sees[key]), key
            continue
        other = expert[key.removeprefix("language_model.")]
        expected = sees[key].clone()
        rows = [k for k in range(BASE_ROWS) if k != IMAGE_ID] if len(tensor) == 128 else slice(None)
        expected[rows] = 0.25 * sees[key][rows] + 0.75 * other[rows]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7, msg=key)
    assert torch.isfinite(logits(tmp_path / "out", picture)).all()


def test_only_the_language_model_of_a_multimodal_source_can_be_asked_for(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc"},
        output={"dir": "out", "format": "text"},
    )
    report = merge(recipe)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    whole = AutoModelForImageTextToText.from_pretrained(sources / "sees").eval()
    ids = torch.tensor([[1, 4, 5, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(input_ids=ids).logits, rtol=0, atol=0)
    dropped = [row for row in report.result.ledger.tensors if row.action == "dropped"]
    assert dropped
    assert all(row.part.startswith(("encoder", "projector")) for row in dropped)


def test_two_sources_of_one_modality_need_a_choice(sources, tmp_path):
    entries = [{"name": name.replace("-", "_"), "model": f"local:{sources / name}"} for name in ("sees", "sees-too")]
    settings = {"merge": {"method": "naivemc"}, "output": {"dir": "out"}}
    with pytest.raises(CompositionError, match="'sees' and 'sees_too' both bring 'image'"):
        merge(write_recipe(tmp_path / "recipe.yaml", sources=entries, **settings))
    assert not (tmp_path / "out").exists()
    entries[1]["modalities"] = []
    merge(write_recipe(tmp_path / "recipe.yaml", sources=entries, **settings))
    ours, first, second = (load_file(next(f.glob("*.safetensors"))) for f in
                           (tmp_path / "out", sources / "sees", sources / "sees-too"))  # fmt: skip
    for key, tensor in ours.items():
        language = key.startswith("language_model.")
        expected = (first[key] + second[key]) / 2 if language else first[key]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7, msg=key)


def test_every_tensor_of_every_source_has_a_ledger_row(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[
            {"name": "sees", "model": f"local:{sources / 'sees'}"},
            {"name": "other", "model": f"local:{sources / 'sees-too'}", "modalities": []},
        ],
        merge={"method": "naivemc"},
        output={"dir": "out"},
    )
    merge(recipe)
    ledger = Ledger.read(tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert [row.name for row in ledger.tensors if row.action != "dropped"] == list(written)
    dropped = [(row.sources, row.name) for row in ledger.tensors if row.action == "dropped"]
    assert len(dropped) == len(set(dropped))
    used = {(source, row.name) for row in ledger.tensors for source in row.sources}
    for name, folder in {"sees": "sees", "other": "sees-too"}.items():
        for key in load_file(sources / folder / "model.safetensors"):
            assert (name, key) in used, (name, key)


def test_the_same_recipe_gives_the_same_folder(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        base=f"local:{sources / 'base'}",
        sources=[
            {"name": "sees", "model": f"local:{sources / 'sees'}"},
            {"name": "expert", "model": f"local:{sources / 'expert'}"},
        ],
        merge={"method": "dare_ties", "parameters": {"density": 0.5}},
        output={"format": "composed"},
    )
    first, second = (merge(recipe, output=tmp_path / name).result.folder for name in ("one", "two"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_folder_that_holds_something_else_is_left_alone(sources, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc"},
        output={"dir": "out"},
    )
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        merge(recipe)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_the_output_loads_where_mcompose_is_not_installed(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc", "dtype": "bfloat16"},
        output={"dir": "out", "format": "composed"},
    )
    merge(recipe)
    code = f"""
import sys; sys.modules["mcompose"] = None
from transformers import AutoModelForMultimodalLM, AutoProcessor
model, info = AutoModelForMultimodalLM.from_pretrained(
    {str(tmp_path / "out")!r}, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
processor = AutoProcessor.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
inputs = processor(text="USER : what is this ? ASSISTANT :", return_tensors="pt")
print(model.dtype, model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] - inputs["input_ids"].shape[1])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "torch.bfloat16"


def test_whole_models_of_one_class_are_mixed_towers_included(sources, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[
            {"name": "a", "model": f"local:{sources / 'sees'}"},
            {"name": "b", "model": f"local:{sources / 'sees-other-tower'}"},
        ],
        merge={"method": "weight-mix", "parameters": {"beta": 0.75}},
        compose={"towers": "merge"},
        output={"dir": "out"},
    )
    merge(recipe)
    ours, a, b = (load_file(next(f.glob("*.safetensors"))) for f in
                  (tmp_path / "out", sources / "sees", sources / "sees-other-tower"))  # fmt: skip
    assert list(ours) == list(a)
    assert any(not torch.equal(a[key], b[key]) for key in a if not key.startswith("language_model."))
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, 0.75 * a[key] + 0.25 * b[key], rtol=1e-6, atol=1e-7, msg=key)


def test_a_mergekit_file_merges_all_tensors_as_mergekit_does(sources, tmp_path):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            {"model": str(sources / "sees"), "parameters": {"weight": 0.3}},
            {"model": str(sources / "sees-other-tower"), "parameters": {"weight": 0.9}},
        ],
    }
    path = tmp_path / "mergekit.yml"
    path.write_text(yaml.safe_dump(config))
    run_merge(
        MergeConfiguration.model_validate(config),
        str(tmp_path / "theirs"),
        MergeOptions(copy_tokenizer=False, quiet=True),
    )
    merge(path, output=tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    # mergekit 0.1.5 leaves the language model of a LLaVA out of its output; what it does write must agree.
    assert not any("language_model" in key for key in theirs)
    assert len(theirs) == len([key for key in ours if not key.startswith("language_model.")])
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key.removeprefix("model.")], tensor, rtol=1e-6, atol=1e-7, msg=key)
    name = "language_model.model.norm.weight"
    a, b = (load_file(sources / source / "model.safetensors")[name] for source in ("sees", "sees-other-tower"))
    torch.testing.assert_close(ours[name], (0.3 * a + 0.9 * b) / 1.2, rtol=1e-6, atol=1e-7)


def test_layers_that_slices_add_are_spelt_like_the_owners(sources, tmp_path, picture):
    taken = [("sees", [0, 2]), ("expert", [1, 2])]
    slices = [{"sources": [{"source": name, "layer_range": layers}]} for name, layers in taken]
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": name, "model": f"local:{sources / name}"} for name in ("sees", "expert")],
        merge={"method": "passthrough", "slices": slices},
        output={"dir": "out"},
    )
    merge(recipe)
    ours, expert = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", sources / "expert"))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(ours["language_model." + name.format(2)], expert[name.format(1)])
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.text_config.num_hidden_layers == 3
    assert torch.isfinite(logits(tmp_path / "out", picture)).all()


def test_words_of_torch_name_no_source_of_a_composed_output(sources, tmp_path):
    assert set(TORCH_WORDS) >= {name for name in dir(torch.nn.ModuleDict()) if not name.startswith("_")}
    for output_format, refused in (("composed", True), ("native", False)):
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            sources=[{"name": "train", "model": f"local:{sources / 'sees'}"}],
            merge={"method": "naivemc"},
            output={"dir": output_format, "format": output_format},
        )
        with pytest.raises(CompositionError, match="'train': torch uses the word") if refused else nullcontext():
            merge(recipe)
        assert (tmp_path / output_format).exists() is not refused


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("config.json", {"vision_config": {"hidden_act": {}}}, "The config of source 'sees' cannot be loaded"),
        ("tokenizer.json", {"model": {"vocab": {"a": True}}}, "The tokenizer of source 'sees' cannot be loaded"),
        ("processor_config.json", {"image_processor": 5}, "The processor of source 'sees' cannot be loaded"),
        ("config.json", {"text_config": {"num_hidden_layers": 3}}, "'sees' says 3 layers, and its files hold 2"),
    ],
)
def test_a_file_of_a_source_that_transformers_cannot_read_is_named(sources, tmp_path, name, damage, words):
    shutil.copytree(sources / "sees", tmp_path / "sees")
    path = tmp_path / "sees" / name
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), damage)))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": "local:sees"}],
        merge={"method": "naivemc"},
        output={"dir": "out", "format": "composed"},
    )
    with pytest.raises(CompositionError, match=words):
        merge(recipe)
    if name == "processor_config.json":
        with pytest.raises(CompositionError, match=words):
            plan(recipe)
    assert not list(tmp_path.glob("out*"))


def test_a_source_without_a_processor_is_refused_by_plan_and_merge(sources, tmp_path):
    shutil.copytree(sources / "sees", tmp_path / "sees", ignore=shutil.ignore_patterns("*processor*"))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": "local:sees"}],
        merge={"method": "naivemc"},
        output={"dir": "out", "format": "composed"},
    )
    for step in (plan, merge):
        with pytest.raises(CompositionError, match="The processor of source 'sees' cannot be loaded"):
            step(recipe)


def _changed(table: dict, changes: dict) -> dict:
    nested = {k: _changed(table[k], v) for k, v in changes.items() if isinstance(v, dict) and v and k in table}
    return {**table, **changes, **nested}


def test_adapters_of_both_sources_are_folded_as_peft_does_and_locked(sources, tmp_path):
    merged = {}
    for seed, (name, cls, targets) in enumerate(
        [
            ("sees", AutoModelForImageTextToText, ["q_proj", "linear_1"]),  # the vision tower and projector too
            ("expert", AutoModelForCausalLM, ["down_proj"]),
        ]
    ):
        model = get_peft_model(cls.from_pretrained(sources / name), LoraConfig(r=2, target_modules=targets))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        model.save_pretrained(tmp_path / f"{name}-lora")
        model.merge_and_unload().save_pretrained(tmp_path / f"{name}-merged")
        merged[name] = load_file(tmp_path / f"{name}-merged/model.safetensors")
    entries = [{"name": n, "model": f"local:{sources / n}", "adapter": f"local:{tmp_path}/{n}-lora"} for n in merged]
    recipe = write_recipe(tmp_path / "recipe.yaml", sources=entries, merge={"method": "linear"}, output={"dir": "out"})
    merge(recipe)
    for key, tensor in load_file(tmp_path / "out/model.safetensors").items():
        expected = merged["sees"][key].clone()
        if key.startswith("language_model."):
            rows = [k for k in range(BASE_ROWS) if k != IMAGE_ID] if len(tensor) == 128 else slice(None)
            other = merged["expert"][key.removeprefix("language_model.")]
            expected[rows] = (expected[rows] + other[rows]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=key)
    lock = json.loads((tmp_path / "out/mcompose/lock.json").read_text())
    for name, entry in lock["sources"].items():
        assert entry["adapter"]["ref"] == f"local:{name}-lora"
        path = tmp_path / f"{name}-lora/adapter_model.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["adapter"]["files"][path.name] == {"size": path.stat().st_size, "sha256": digest}
    assert str(tmp_path) not in (tmp_path / "out/mcompose/lock.json").read_text()


def test_a_config_that_leaves_its_depth_out_is_copied_as_it_is(sources, tmp_path):
    """As in LLaVA 1.5: what equals the class's default is not in the file; here the depth of a shallow copy of it."""
    depth = AutoConfig.for_model("llama").num_hidden_layers
    shutil.copytree(sources / "sees", tmp_path / "sees")
    table = json.loads((tmp_path / "sees/config.json").read_text())
    del table["text_config"]["num_hidden_layers"]
    (tmp_path / "sees/config.json").write_text(json.dumps(table))
    tensors = load_file(tmp_path / "sees/model.safetensors")
    for key, tensor in list(tensors.items()):
        for layer in range(2, depth):
            if ".layers.1." in key and key.startswith("language_model."):
                tensors[key.replace(".layers.1.", f".layers.{layer}.")] = tensor.clone()
    save_file(tensors, tmp_path / "sees/model.safetensors", metadata={"format": "pt"})
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "sees", "model": "local:sees"}],
        merge={"method": "naivemc"},
        output={"dir": "out"},
    )
    merge(recipe)
    assert json.loads((tmp_path / "out/config.json").read_text()) == table
