"""Several sources with towers of their own: an image model and an audio model over one merged language model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import language
from PIL import Image
from safetensors.torch import load_file
from tiny_configs import RAW, clip, text
from tiny_models import fill
from tiny_sources import tokenizer, write_recipe
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
)

from mcompose.ledger import Ledger
from mcompose.pipeline.write import merge

ROWS = {"base": 100, "sees": 120, "hears": 128}
SIDE = {"height": 28, "width": 28}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    config = {name: text("qwen2", vocab_size=rows) for name, rows in ROWS.items()}
    base = Qwen2ForCausalLM(Qwen2ForCausalLM.config_class.from_dict(config["base"]))
    fill(base, 0)
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")

    sees = LlavaForConditionalGeneration(
        LlavaConfig.from_dict({
            "text_config": config["sees"], "vision_config": clip(), "image_token_index": 19,
            "vision_feature_layer": -1,
        })
    )  # fmt: skip
    fill(sees, 1)
    language(sees, base, change=0.05, seed=1)
    sees.save_pretrained(folder / "sees")
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=SIDE)
    LlavaProcessor(
        images, tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder / "sees")  # fmt: skip

    audio = {**RAW["qwen2_audio"]["audio_config"], "num_mel_bins": 4}
    raw = {**RAW["qwen2_audio"], "audio_config": audio, "text_config": config["hears"], "audio_token_index": 19}
    hears = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_dict(raw))
    fill(hears, 2)
    language(hears, base, change=0.05, seed=2)
    hears.save_pretrained(folder / "hears")
    sounds = WhisperFeatureExtractor(feature_size=4, n_fft=256, hop_length=100, sampling_rate=8000, chunk_length=1)
    spoken = tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    Qwen2AudioProcessor(sounds, spoken).save_pretrained(folder / "hears")
    return folder


def spelt(key: str) -> str:
    """One spelling for what Qwen2-Audio's files are called by older and newer transformers."""
    return key.replace("language_model.model.model.", "language_model.model.")


def composed(folder: Path, family: Path, *names: str, **changes: object) -> Path:
    recipe = write_recipe(
        folder / "recipe.yaml",
        base=f"local:{family / 'base'}",
        sources=[{"name": name, "model": f"local:{family / name}"} for name in names],
        merge={"method": "naivemc"},
        output={"dir": "-".join(names)},
        **changes,
    )
    merge(recipe)
    return folder / "-".join(names)


@pytest.fixture(scope="module")
def both(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composed(tmp_path_factory.mktemp("both"), family, "sees", "hears")


def test_towers_are_copied_and_the_language_model_is_the_average(family, both):
    ours, base, *sources = (
        load_file(folder / "model.safetensors") for folder in (both, *(family / name for name in ROWS))
    )
    sees, hears = ({spelt(key): tensor for key, tensor in source.items()} for source in sources)
    expected: dict[str, torch.Tensor] = {}
    for key, tensor in base.items():
        mine, theirs = (source[f"language_model.{key}"][: len(tensor)] for source in (sees, hears))
        name = key.replace("model.", "model.language_model.", 1)
        expected[name] = mine * 0.5 + theirs * 0.5
        if len(tensor) == ROWS["base"]:
            expected[name][19] = tensor[19]  # `<image>` in one, `<|AUDIO|>` in the other
            expected[name][20:22] = tensor[20:22]
    for source, tensors in (("sees", sees), ("hears", hears)):
        for key, tensor in tensors.items():
            if not key.startswith("language_model."):
                expected[f"model.towers.{source}.{key}"] = tensor
    assert set(ours) == set(expected)
    for key, tensor in ours.items():
        if key.startswith("model.towers."):
            assert torch.equal(tensor, expected[key]), key
        else:
            torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-7, msg=key)


def test_every_source_tensor_is_in_the_ledger_and_every_output_tensor_once(family, both):
    rows = Ledger.read(both).tensors
    assert [row.name for row in rows if row.action != "dropped"] == list(load_file(both / "model.safetensors"))
    dropped = [row for row in rows if row.action == "dropped"]
    for name in ("sees", "hears"):
        whole = [row for row in dropped if row.sources == (name,) and "rows" not in row.note]
        assert not whole
    assert {(row.sources, spelt(row.name)) for row in dropped} == {
        ((name,), f"language_model.{table}") for name in ("sees", "hears")
        for table in ("model.embed_tokens.weight", "lm_head.weight")
    }  # fmt: skip


def test_both_modalities_meet_in_one_prompt(both):
    model = AutoModelForMultimodalLM.from_pretrained(both, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(both, trust_remote_code=True)
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    sound = random.standard_normal(6000).astype(np.float32)

    def answer(**media: object) -> torch.Tensor:
        inputs = processor(text="USER : <image> <audio> what ASSISTANT :", return_tensors="pt", **media)
        with torch.no_grad():
            return model(**inputs).logits[0, -1]

    whole = answer(images=picture, audio=sound)
    assert torch.isfinite(whole).all()
    assert not torch.equal(whole, answer(images=picture, audio=-3 * sound))
    assert not torch.equal(whole, answer(images=picture.rotate(180), audio=sound))


def test_the_order_of_the_sources_changes_no_tensor_of_an_average(family, both, tmp_path):
    turned = composed(tmp_path, family, "hears", "sees")
    one, other = (load_file(folder / "model.safetensors") for folder in (both, turned))
    assert set(one) == set(other)
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def test_a_composition_takes_a_language_model_and_keeps_its_processors(family, both, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        sources=[{"name": "both", "model": f"local:{both}"}, {"name": "base-too", "model": f"local:{family / 'base'}"}],
        merge={"method": "linear", "weights": {"both": 1, "base-too": 0}},
        output={"dir": "out"},
    )
    merge(recipe)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", both))
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    media = {"images": picture, "audio": random.standard_normal(6000).astype(np.float32)}
    answers = []
    for folder in (tmp_path / "out", both):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        inputs = processor(text="USER : <image> <audio> what ASSISTANT :", return_tensors="pt", **media)
        model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            answers.append(model(**inputs).logits)
    assert torch.equal(*answers)
