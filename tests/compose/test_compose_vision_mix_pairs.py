"""Mixed image encoders beside everything else that a composition can have, and where mcompose is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import write_natives
from PIL import Image
from safetensors.torch import load_file
from tiny_experts import write_expert
from tiny_sources import write_recipe
from transformers import AutoModelForMultimodalLM, AutoProcessor

from mcompose.anatomy import read_anatomy
from mcompose.checkpoint import open_checkpoint
from mcompose.errors import CompositionError
from mcompose.merge.verify import verify
from mcompose.pipeline.headers import plan
from mcompose.pipeline.write import merge
from mcompose.refs import ModelRef

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 84, 3), np.uint8))
SOUND = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
CLOUD = np.random.default_rng(2).standard_normal((30, 3)).astype(np.float32)
VIEWS = {"size": 28, "tiles": "auto", "max_tiles": 3, "frames": 2}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_natives(tmp_path_factory.mktemp("pairs"))
    for name in ("clip", "pix2struct", "siglip"):
        write_expert(name, folder / name)
    return folder


def recipe(folder: Path, name: str, *, sources=("sees", "hears", "feels"), **compose) -> Path:
    mix = {
        "encoders": {"clip": {"encoder": "local:clip", "class_token": "keep"}, "own": {"source": "sees"}},
        "streams": [{"of": ["own"]}, {"of": ["clip"]}],
        "views": VIEWS,
    }
    return write_recipe(
        folder / f"{name}.yaml",
        base="local:base",
        sources=[{"name": one, "model": f"local:{one}"} for one in sources],
        merge={"method": "linear", "seed": 3},
        compose={"vision_mix": mix, **compose},
        output={"dir": name},
    )


@pytest.fixture(scope="session")
def whole(folder: Path) -> Path:
    """DAMC groups, experts behind a router, and mixed encoders in one checkpoint."""
    experts = {"charts": {"encoder": "local:pix2struct"}}
    return merge(recipe(folder, "whole", decouple="convert", experts=experts)).result.folder


@pytest.fixture(scope="session")
def plain(folder: Path) -> Path:
    return merge(recipe(folder, "plain", sources=("sees", "hears"))).result.folder


def loaded(where: Path):
    model = AutoModelForMultimodalLM.from_pretrained(where, trust_remote_code=False).eval()
    return model, AutoProcessor.from_pretrained(where, trust_remote_code=False)


def own(inputs) -> dict[str, torch.Tensor]:
    return {key.removeprefix("eyes__"): value for key, value in inputs.items() if key.startswith("eyes__")}


def test_the_group_of_images_is_that_of_the_mixed_source(whole, folder):
    """The tokens of views read the language model of the source whose tower is in the mix."""
    state = load_file(whole / "model.safetensors")
    sees = load_file(folder / "sees" / "model.safetensors")
    name = "layers.1.mlp.down_proj.weight"
    native = next(value for key, value in sees.items() if key.endswith(name))
    stem = f"model.language_model.{name.removesuffix('.weight')}"
    assert torch.equal(state[f"{stem}.groups.image.weight"], native)


def test_a_router_reads_the_view_of_the_whole_picture(whole):
    model, processor = loaded(whole)
    inputs = processor(text=["<image> a", "b <image>"], images=[PICTURE, PICTURE.resize((40, 40))])
    assert inputs["eyes__view_counts"].tolist() == [4, 1]
    clip = model.model.towers["eyes"].encoders["clip"].encoder
    with torch.no_grad():
        routed = model.route(**inputs)
        hidden = clip(inputs["eyes__clip__pixel_values"]).last_hidden_state
        scores = hidden[[0, 4], 0] @ model.model.routers["image"].weight.T
    best = scores.argmax(-1)
    assert routed["routes"] == [["charts"] if index else [] for index in best.tolist()]


def test_all_media_in_one_batch_and_step_by_step(whole):
    model, processor = loaded(whole)
    processor.tokenizer.padding_side = "left"
    media = {"images": [PICTURE, PICTURE], "audio": [SOUND], "points": [CLOUD]}
    inputs = processor(text=["<image> and <audio>", "<points> or <image> x"], experts=["charts", None], **media)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        answer = model.generate(
            **inputs, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, output_logits=True
        )
        alone = processor(text="<points> or <image> x", images=[PICTURE], points=[CLOUD], experts="none")
        torch.testing.assert_close(model(**alone).logits[0, -1], logits[1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(answer.logits[0], logits, atol=2e-5, rtol=1e-4)


def test_a_film_is_its_frames(plain):
    model, processor = loaded(plain)
    frames = [PICTURE, PICTURE.rotate(180), PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT), PICTURE]
    film = processor(text="<video>", videos=[frames])
    still = processor(text="<image> <image>", images=[frames[0], frames[2]])
    with torch.no_grad():
        seen = model.model.get_video_features(None, **{k.removeprefix("video_"): v for k, v in own(film).items()})
        expected = model.model.get_image_features(None, **own(still))
    assert torch.equal(seen.pooler_output, expected.pooler_output)
    assert int((film["mm_token_type_ids"] == 2).sum()) == len(expected.pooler_output)


def test_its_parts_are_told_apart(plain):
    checkpoint = open_checkpoint(ModelRef("local", str(plain), None), relative_to=plain)
    anatomy = read_anatomy(checkpoint.config, checkpoint.shapes)
    parts = {slot.name: slot.part for slot in anatomy.slots.values() if slot.name.startswith("towers.eyes.")}
    assert parts["towers.eyes.start"] == parts["towers.eyes.projectors.1.linear.weight"] == "projector"
    assert parts["towers.eyes.encoders.own.tower.multi_modal_projector.linear_1.weight"] == "projector"
    assert {part for name, part in parts.items() if ".encoder." in name or "vision_tower" in name} == {"encoder"}
    verify(plain)


def test_a_checkpoint_with_mixed_encoders_is_a_source_like_any(plain, folder):
    path = write_recipe(
        folder / "again.yaml",
        sources=[
            {"name": "both", "model": "local:plain", "modalities": ["image"]},
            {"name": "feels", "model": "local:feels"},
        ],
        merge={"method": "linear", "weights": {"both": 1.0, "feels": 0.0}},
        output={"dir": "again"},
    )  # fmt: skip
    again = merge(path).result.folder
    old, new = load_file(plain / "model.safetensors"), load_file(again / "model.safetensors")
    towers = {key: value for key, value in old.items() if key.startswith("model.towers.eyes.")}
    assert towers
    for key, value in towers.items():
        assert torch.equal(new[key.replace("towers.eyes.", "towers.both.")], value), key
    model, processor = loaded(plain)
    renewed, theirs = loaded(again)
    before, after = processor(text="a <image>", images=[PICTURE]), theirs(text="a <image>", images=[PICTURE])
    with torch.no_grad():
        torch.testing.assert_close(renewed(**after).logits, model(**before).logits, atol=1e-5, rtol=1e-5)


def test_it_loads_and_answers_where_mcompose_is_not_installed(whole, tmp_path):
    script = tmp_path / "answer.py"
    script.write_text(
        "import json, sys\nsys.modules['mcompose'] = None\nimport numpy as np, torch\nfrom PIL import Image\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\nwhere = sys.argv[1]\n"
        "processor = AutoProcessor.from_pretrained(where, trust_remote_code=True)\n"
        "model, report = AutoModelForMultimodalLM.from_pretrained(\n"
        "    where, trust_remote_code=True, output_loading_info=True)\n"
        "picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 84, 3), np.uint8))\n"
        "inputs = processor(text='a <image> b', images=[picture], experts='charts')\n"
        "with torch.no_grad():\n    logits = model.eval()(**inputs).logits\n"
        "print(json.dumps({'logits': logits[0, -1].tolist(), 'problems': [str(v) for v in report.values() if v]}))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", script, whole], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = json.loads(ran.stdout)
    model, processor = loaded(whole)
    with torch.no_grad():
        logits = model(**processor(text="a <image> b", images=[PICTURE], experts="charts")).logits
    assert said["problems"] == []
    torch.testing.assert_close(torch.tensor(said["logits"]), logits[0, -1], atol=1e-5, rtol=1e-5)


def test_half_precision_runs(plain):
    model = AutoModelForMultimodalLM.from_pretrained(plain, trust_remote_code=False, dtype=torch.bfloat16).eval()
    processor = AutoProcessor.from_pretrained(plain, trust_remote_code=False)
    with torch.no_grad():
        assert torch.isfinite(model(**processor(text="<image>", images=[PICTURE])).logits).all()


def test_two_mixed_sources_have_no_one_group(folder):
    path = recipe(folder, "two", decouple="convert")
    text = path.read_text().replace("name: hears", "name: sees2").replace("local:hears", "local:sees")
    path.write_text(text.replace("        encoder: local:clip\n        class_token: keep\n", "        source: sees2\n"))
    with pytest.raises(CompositionError, match="no one language model of their own"):
        plan(path)
