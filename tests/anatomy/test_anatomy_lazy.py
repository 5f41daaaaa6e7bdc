"""Known families cost no torch, no transformers and no time; others are asked of transformers once and kept."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time

import pytest
import tiny_configs

from mcompose.anatomy import read_anatomy
from mcompose.anatomy.cache import ask_transformers
from mcompose.anatomy.tables import generated
from mcompose.on_disk import cache_folder

pytestmark = pytest.mark.floor

UNLISTED = {
    "model_type": "nemotron", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mcompose" / "anatomy"


def test_all_known_families_are_read_without_torch_or_transformers(tmp_path):
    configs = [{**raw, "model_type": kind} for kind, raw in tiny_configs.RAW.items()]
    configs += [{"model_type": "t5"}, {"model_type": "mllama"}]
    configs += [{"model_type": "mcompose_points", "text_config": tiny_configs.text("llama")}]
    script = (
        "import json, sys\n"
        "from mcompose.anatomy import read_anatomy, can_compose, summarise\n"
        "for config in json.load(open(sys.argv[1])):\n"
        "    anatomy = read_anatomy(config, {})\n"
        "    can_compose({'a': anatomy, 'b': anatomy}); summarise(anatomy, {}, {})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    listing = tmp_path / "configs.json"
    listing.write_text(json.dumps(configs))
    done = subprocess.run([sys.executable, "-c", script, str(listing)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def llava_7b() -> dict[str, tuple[int, ...]]:
    """Keys of a llava-1.5-7b checkpoint, about 700."""
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    keys = [f"language_model.model.layers.{i}.{part}.weight" for i in range(32) for part in parts]
    inner = [
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
        *(f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")),
    ]
    keys += [
        f"vision_tower.vision_model.encoder.layers.{i}.{part}.{leaf}"
        for i in range(24)
        for part in inner
        for leaf in ("weight", "bias")
    ]
    keys += [
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
    ]
    keys += [f"multi_modal_projector.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")]
    return dict.fromkeys(keys, (4096, 4096))


LLAVA = {"model_type": "llava", "text_config": {"model_type": "llama"}}


def test_every_tensor_of_a_7b_checkpoint_has_a_slot():
    keys = llava_7b()
    assert len(keys) > 670
    assert len(read_anatomy(LLAVA, keys).slots) == len(keys)


@pytest.mark.cost
def test_a_7b_checkpoint_is_read_in_milliseconds():
    keys = llava_7b()
    read_anatomy(LLAVA, keys)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        read_anatomy(LLAVA, keys)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02


def test_a_type_outside_the_table_is_asked_once_and_kept(own_cache, monkeypatch):
    assert "nemotron" not in generated()["types"]
    keys = {"model.embed_tokens.weight": (1,), "model.layers.1.mlp.up_proj.weight": (1,), "lm_head.weight": (1,)}

    first = read_anatomy(UNLISTED, keys)
    assert [slot.name for slot in first.slots.values()] == [
        "embed_tokens.weight",
        "layers.1.mlp.up_proj.weight",
        "lm_head.weight",
    ]
    assert first.known
    assert len(list(own_cache.iterdir())) == 1

    monkeypatch.setattr("mcompose.anatomy.meta.describe", lambda *_: pytest.fail("asked twice"))
    assert read_anatomy(UNLISTED, keys) == first


def test_another_config_is_another_answer(own_cache):
    read_anatomy(UNLISTED, {})
    read_anatomy({**UNLISTED, "num_hidden_layers": 3}, {})
    assert len(list(own_cache.iterdir())) == 2


def test_a_broken_cache_file_is_ignored(own_cache):
    answer = ask_transformers(UNLISTED)
    (file,) = own_cache.iterdir()
    file.write_text("{")
    assert ask_transformers(UNLISTED) == answer


@pytest.mark.parametrize("kind", ["file in the way", "read-only"])
def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch, kind):
    blocked = tmp_path / "blocked"
    if kind == "file in the way":
        blocked.write_text("")
    else:
        blocked.mkdir()
        blocked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert cache_folder("anatomy").parent.parent == blocked
    assert read_anatomy(UNLISTED, {"model.norm.weight": (1,)}).known
    if kind == "read-only" and os.geteuid() != 0:
        assert not list(blocked.iterdir())
