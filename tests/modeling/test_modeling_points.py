"""The points source against hand-computed values, and as a checkpoint that plain transformers loads by its own code."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mcompose.modeling.points.configuration import PointsConfig, PointsEncoderConfig
from mcompose.modeling.points.network import PointsEncoder, PointsForConditionalGeneration
from mcompose.modeling.points.processing import PointsProcessor, sample_points

WORDS = ["<pad>", "<eos>", "<unk>", "<points>", "how", "many", "?", "one", "two"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<points>"]})
    return tokenizer


def make_model() -> PointsForConditionalGeneration:
    text = {
        "model_type": "llama",
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = PointsConfig(text_config=text, points_config={"hidden_size": 8, "num_tokens": 3}, points_token_id=3)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return PointsForConditionalGeneration(config).eval()


def clouds(count: int, points: int = 40) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.standard_normal((points, 3)).astype(np.float32) for _ in range(count)]


def test_points_density_counts_neighbours_by_hand() -> None:
    encoder = PointsEncoder(PointsEncoderConfig(hidden_size=8, radii=[1.0]))
    found = encoder.density(torch.tensor([[[0.0, 0, 0], [2.0, 0, 0], [50.0, 0, 0]]]))
    crowd = 1 + np.exp(-2.0)  # one neighbour at distance 2 with radius 1, the third too far to count
    expected = [[np.log(crowd), 1 / crowd], [np.log(crowd), 1 / crowd], [0.0, 1.0]]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_points_encoder_ignores_the_order_of_points() -> None:
    model = make_model()
    cloud = torch.from_numpy(clouds(1)[0])[None]
    forward = model.get_points_features(cloud).pooler_output
    backward = model.get_points_features(cloud.flip(1)).pooler_output
    assert forward.shape == (1, 3, 16)
    torch.testing.assert_close(forward, backward)


def test_points_features_stand_at_the_placeholders() -> None:
    model, processor = make_model(), PointsProcessor(make_tokenizer(), num_points=16, num_points_tokens=3)
    batch = processor(text="how <points> many <points>", points=clouds(2), return_tensors="pt")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    features = model.get_points_features(batch["points"]).pooler_output
    embeds[0, 1:4], embeds[0, 5:8] = features[0], features[1]
    by_hand = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model(**batch).logits, by_hand, rtol=0, atol=0)


def test_points_generation_is_the_same_with_and_without_cache_and_padding() -> None:
    model, processor = make_model(), PointsProcessor(make_tokenizer(), num_points=16, num_points_tokens=3)
    items = clouds(3)
    texts = ["how many <points> ?", "<points> <points> how many many ?"]
    batch = processor(text=texts, points=items, return_tensors="pt", padding=True)
    together = model.generate(**batch, do_sample=False, max_new_tokens=4, min_new_tokens=4)[:, -4:]
    uncached = model.generate(**batch, do_sample=False, max_new_tokens=4, min_new_tokens=4, use_cache=False)[:, -4:]
    assert together.tolist() == uncached.tolist()
    for text, own, answer in zip(texts, (items[:1], items[1:]), together, strict=True):
        alone = processor(text=text, points=own, return_tensors="pt")
        if alone["input_ids"].ndim == 1:
            alone["input_ids"], alone["attention_mask"] = alone["input_ids"][None], alone["attention_mask"][None]
        single = model.generate(**alone, do_sample=False, max_new_tokens=4, min_new_tokens=4)
        assert single[0, -4:].tolist() == answer.tolist()


def test_points_are_thinned_and_repeated_in_order(tmp_path) -> None:
    cloud = np.arange(30, dtype=np.float32).reshape(10, 3)
    assert sample_points(cloud, num_points=5)[:, 0].tolist() == [0, 6, 12, 18, 24]
    assert sample_points(cloud[:2], num_points=5)[:, 0].tolist() == [0, 3, 0, 3, 0]
    np.save(tmp_path / "cloud.npy", cloud)
    np.testing.assert_array_equal(sample_points(tmp_path / "cloud.npy", num_points=10), cloud)


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (np.zeros((0, 3)), "shape"),
        (np.zeros((4, 2)), "shape"),
        (np.full((4, 3), np.nan), "not finite"),
    ],
)
def test_points_bad_clouds_are_refused(cloud, message) -> None:
    with pytest.raises(ValueError, match=message):
        sample_points(cloud, num_points=4)


def test_points_counts_of_text_and_clouds_must_agree() -> None:
    model, processor = make_model(), PointsProcessor(make_tokenizer(), num_points=16, num_points_tokens=3)
    with pytest.raises(ValueError, match=r"1 <points>, but 2 clouds"):
        processor(text="<points>", points=clouds(2))
    batch = processor(text=["<points>"], points=clouds(1), return_tensors="pt")
    with pytest.raises(ValueError, match="3 placeholder tokens, the clouds give 6"):
        model(input_ids=batch["input_ids"], points=torch.cat([batch["points"]] * 2))


def test_points_token_types_mark_the_clouds() -> None:
    processor = PointsProcessor(make_tokenizer(), num_points=16, num_points_tokens=3)
    batch = processor(text=["how <points> ?"], points=clouds(1), return_mm_token_type_ids=True)
    assert batch["mm_token_type_ids"] == [[0, 4, 4, 4, 0]]


def test_points_checkpoint_loads_by_its_own_code_without_mcompose(tmp_path) -> None:
    from mcompose.lab.checkpoints import save_points_source

    model, processor = make_model(), PointsProcessor(make_tokenizer(), num_points=16, num_points_tokens=3)
    save_points_source(tmp_path / "donor", model, processor)
    config = json.loads((tmp_path / "donor" / "config.json").read_text())
    assert config["auto_map"]["AutoConfig"] == "configuration_points.PointsConfig"
    cloud = clouds(1)[0]
    np.save(tmp_path / "cloud.npy", cloud)
    script = (
        "import sys; sys.modules['mcompose'] = None\n"
        "import numpy as np, torch\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        f"folder = {str(tmp_path / 'donor')!r}\n"
        "model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        f"batch = processor(text=['how many <points> ?'], points=[{str(tmp_path / 'cloud.npy')!r}],"
        " return_tensors='pt')\n"
        "with torch.no_grad(): logits = model(**batch).logits\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits.numpy())\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, env=environment, cwd=tmp_path)
    batch = processor(text=["how many <points> ?"], points=[cloud], return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-6)
