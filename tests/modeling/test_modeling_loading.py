"""Composed folders load by plain transformers where mcompose cannot be imported, from a folder and from a Hub cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from composed_folders import read_json, tiny_tokenizer, write_folder
from PIL import Image
from safetensors import safe_open
from tiny_models import TINY, fill, tiny_model
from tiny_processors import llava
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from mcompose.modeling import (
    AUTO_MAP,
    ComposedConfig,
    ComposedForConditionalGeneration,
    ComposedModel,
    ComposedProcessor,
    generate_files,
    register,
)
from mcompose.modeling.points.configuration import PointsConfig
from mcompose.modeling.points.network import PointsForConditionalGeneration
from mcompose.modeling.points.processing import PointsProcessor

ANSWER = """
import json, sys
sys.modules["mcompose"] = None
import numpy as np
import torch
from PIL import Image
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers import AutoProcessor

where = sys.argv[1]
processor = AutoProcessor.from_pretrained(where, trust_remote_code=True)
model, report = AutoModelForMultimodalLM.from_pretrained(where, trust_remote_code=True, output_loading_info=True)
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8))
cloud = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
inputs = processor(text="USER : <image> what <points> ASSISTANT :", images=image, points=cloud)
with torch.no_grad():
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=3)
others = [
    type(auto.from_pretrained(where, trust_remote_code=True)).__name__
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)
]
print(json.dumps({
    "logits": logits[0, -1].tolist(), "tokens": tokens[0].tolist(), "others": others,
    "problems": sorted(str(v) for v in report.values() if v), "module": type(model).__module__,
}))
"""


def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8))


def cloud():
    return np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    text = TINY["llava"]().get_text_config().to_dict()
    points = PointsForConditionalGeneration(PointsConfig(text_config=text, points_config={"hidden_size": 16})).eval()
    fill(points, 3)
    natives = {"sees": tiny_model("llava"), "feels": points}
    processors = {"sees": llava(), "feels": PointsProcessor(tiny_tokenizer("<points>"), num_points=20)}
    return write_folder(
        tmp_path_factory.mktemp("composed") / "model", natives["sees"], natives,
        modalities={"sees": ["image"], "feels": ["points"]},
        tokenizer=tiny_tokenizer(*[f"<extra_{k}>" for k in range(130)]), processors=processors,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wanted(folder):
    """Last logits and greedy tokens, by the classes of this package."""
    processor, model = (
        ComposedProcessor.from_pretrained(folder),
        ComposedForConditionalGeneration.from_pretrained(folder),
    )
    inputs = processor(text="USER : <image> what <points> ASSISTANT :", images=image(), points=cloud())
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=3)
        return model(**inputs).logits[0, -1], tokens[0]


def answer(python, where, tmp_path, **environment):
    """What plain transformers says in another process and folder, where mcompose is blocked."""
    script = tmp_path / "answer.py"
    script.write_text(ANSWER, encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [python, str(script), str(where)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(said, wanted):
    logits, tokens = wanted
    torch.testing.assert_close(torch.tensor(said["logits"]), logits, rtol=1e-5, atol=1e-6)
    assert said["tokens"] == tokens.tolist()
    assert said["problems"] == []
    assert said["module"].startswith("transformers_modules.")
    assert said["others"] == ["ComposedModel", *["ComposedForConditionalGeneration"] * 2]


def test_a_folder_loads_without_mcompose(folder, wanted, tmp_path):
    check(answer(sys.executable, folder, tmp_path), wanted)


@pytest.mark.floor
def test_a_folder_loads_on_the_oldest_supported_transformers(folder, wanted, tmp_path):
    python = os.environ.get("MCOMPOSE_FLOOR_PYTHON", "")
    if not python or not Path(python).exists():
        pytest.skip("MCOMPOSE_FLOOR_PYTHON names no interpreter with the oldest supported transformers")
    check(answer(python, folder, tmp_path), wanted)


def test_a_repository_in_the_hub_cache_loads_without_mcompose(folder, wanted, tmp_path):
    """The layout that a download leaves behind, read offline by repository id."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hf" / "hub" / "models--tester--composed"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(folder, home / "snapshots" / commit)
    check(answer(sys.executable, "tester/composed", tmp_path), wanted)


def test_every_file_that_the_checkpoint_needs_is_generated(folder):
    texts = generate_files("composed")
    assert {f"{entry.split('.')[0]}.py" for entry in AUTO_MAP.values()} <= set(texts)
    assert {path.name for path in folder.glob("*.py")} == set(texts)
    for name, text in texts.items():
        for line in text.splitlines():
            if line.startswith("from ."):
                assert f"{line.split()[1][1:]}.py" in texts, (name, line)
            assert not line.startswith(("from mcompose", "import mcompose")), name
    assert read_json(folder / "config.json")["auto_map"] == AUTO_MAP


def test_registered_classes_load_without_the_flag(folder, wanted):
    register()
    register()
    assert type(AutoConfig.from_pretrained(folder)) is ComposedConfig
    assert type(AutoProcessor.from_pretrained(folder)) is ComposedProcessor
    for auto in (AutoModelForMultimodalLM, AutoModelForCausalLM):
        model = auto.from_pretrained(folder)
        assert type(model) is ComposedForConditionalGeneration
    base, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(base) is ComposedModel
    assert report["missing_keys"] == set()


@torch.no_grad()
def test_saving_again_keeps_names_and_bytes(folder, tmp_path):
    model = ComposedForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    first, second = (safe_open(path / "model.safetensors", "pt") for path in (folder, tmp_path / "again"))
    assert sorted(first.keys()) == sorted(second.keys())
    assert all(torch.equal(first.get_tensor(name), second.get_tensor(name)) for name in first.keys())  # noqa: SIM118
    for name, text in generate_files("composed").items():
        assert (tmp_path / "again" / name).read_bytes() == text.encode()
    one, two = (read_json(path / "config.json") for path in (folder, tmp_path / "again"))
    assert one["sources"] == two["sources"]
    assert {key: one[key] for key in ("image_token_id", "points_token_id")} == {
        key: two[key] for key in ("image_token_id", "points_token_id")
    }


@pytest.mark.parametrize(
    "model_type",
    ["llava", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "voxtral", "idefics3", "internvl", "gemma3"],
)
@torch.no_grad()
def test_towers_survive_saving_and_loading(model_type, tmp_path):
    from composed_models import one_source

    native, composed, inputs, mine = one_source(model_type)
    composed.save_pretrained(tmp_path)
    again, report = ComposedForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(**mine).logits, native(**inputs).logits)
    names = set(composed.state_dict()) - ({"lm_head.weight"} if composed.config.tie_word_embeddings else set())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names


def test_bfloat16_keeps_what_its_source_keeps_in_float32(tmp_path):
    """Voxtral's position table stays in float32 whatever the rest is loaded in."""
    from composed_models import one_source

    _, composed, _, _ = one_source("voxtral")
    composed.save_pretrained(tmp_path)
    half = ComposedForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tower = half.model.towers["only"].audio_tower
    assert tower.embed_positions.weight.dtype == torch.float32
    assert tower.conv1.weight.dtype == half.lm_head.weight.dtype == torch.bfloat16


def test_a_device_map_places_towers_and_language_model(folder):
    model = ComposedForConditionalGeneration.from_pretrained(folder, device_map="cpu")
    processor = ComposedProcessor.from_pretrained(folder)
    inputs = processor(text="<image> a", images=image())
    assert model(**inputs).logits.isfinite().all()


def test_importing_the_package_imports_no_torch():
    code = "import sys, mcompose.modeling as m; m.generate_files('composed')"
    code += "; print(*(x in sys.modules for x in sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "torch", "transformers"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_configuration_builds_with_no_arguments_and_reads_itself(tmp_path, folder):
    assert ComposedConfig().sources == {}
    config = ComposedConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    assert ComposedConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert transformers.AutoConfig.for_model("llama").model_type == config.text_config.model_type


@pytest.mark.parametrize(
    ("sources", "ids", "message"),
    [
        ({"a": ["image"], "b": ["image"]}, {"image": 5}, "'image' is claimed by 'a' and by 'b'"),
        ({"a": ["image"]}, {}, "has no image_token_id"),
        ({"a": ["image"], "b": ["audio"]}, {"image": 5, "audio": 5}, "must differ"),
        ({"a": ["smell"]}, {}, "unknown modality 'smell'"),
        ({"a__b": ["image"]}, {"image": 5}, "source name 'a__b'"),
    ],
)
def test_configurations_that_cannot_work_are_refused(sources, ids, message):
    from mcompose.modeling import composed_config, stored_source

    entries = {name: stored_source(TINY["llava"](), modalities=mods) for name, mods in sources.items()}
    with pytest.raises(ValueError, match=message):
        composed_config(TINY["llama"](), entries, placeholders=ids)


def test_names_that_torch_uses_are_refused():
    from mcompose.modeling import composed_config, stored_source

    entry = stored_source(TINY["llava"](), modalities=["image"])
    config = composed_config(TINY["llava"]().get_text_config(), {"keys": entry}, placeholders={"image": 120})
    with pytest.raises(ValueError, match="'keys' cannot name a source"):
        ComposedForConditionalGeneration(config)
