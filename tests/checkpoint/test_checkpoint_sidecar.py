"""Small files are copied by content, and patched without losing anything."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcompose.checkpoint import (
    HubSnapshot,
    code_files,
    copy_file,
    digest_file,
    hub,
    is_sidecar,
    open_adapter,
    open_checkpoint,
    patch_json,
)
from mcompose.checkpoint.sidecar import sidecar_files
from mcompose.errors import CheckpointError, StorageError
from mcompose.refs import ModelRef


def test_a_copy_has_the_content_and_tells_its_hash(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "blob").write_bytes(data)
    (tmp_path / "link.json").symlink_to("blob")
    expected = (len(data), hashlib.sha256(data).hexdigest())
    copied = copy_file(tmp_path / "link.json", tmp_path / "out" / "deep" / "copy.json")
    assert (copied.size, copied.sha256) == expected
    assert (tmp_path / "out" / "deep" / "copy.json").read_bytes() == data
    assert not (tmp_path / "out" / "deep" / "copy.json").is_symlink()
    assert digest_file(tmp_path / "blob") == copied


def test_copies_that_fail_say_which_side(tmp_path):
    (tmp_path / "here").write_text("x")
    with pytest.raises(CheckpointError, match="absent' cannot be read"):
        copy_file(tmp_path / "absent", tmp_path / "copy")
    with pytest.raises(CheckpointError, match="absent' cannot be read"):
        digest_file(tmp_path / "absent")
    with pytest.raises(StorageError, match="cannot be written"):
        copy_file(tmp_path / "here", tmp_path / "here" / "below")


def test_patching_keeps_order_and_what_is_not_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"b": 1, "a": {"deep": [1, 2]}, "gone": 3, "empty": null, "name": "é"}', encoding="utf-8")
    text = patch_json(path, {"a": 2, "gone": None, "new": True})
    assert list(json.loads(text).items()) == [("b", 1), ("a", 2), ("empty", None), ("name", "é"), ("new", True)]
    assert "é" in text
    assert text.endswith("}\n")
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        patch_json(path, {})


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("tokenizer.model.v3", True),
        ("qwen.tiktoken", True),
        ("chat_template.json", True),
        ("additional_chat_templates/rag.jinja", True),
        ("generation_config.json", True),
        ("config.json", False),
        ("README.md", False),
        ("tokenization_custom.py", False),
        ("tokenizer.pkl", False),
        ("model.safetensors", False),
        ("onnx/tokenizer.json", False),
        ("../tokenizer.json", False),
        ("mcompose/recipe.yaml", False),
    ],
)
def test_which_files_travel(name, travels):
    assert is_sidecar(name) is travels


def test_code_is_listed_apart(tmp_path):
    for name in ("b.py", "a.py", "x.txt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in code_files(tmp_path)] == ["a.py", "b.py"]


def test_a_hub_reference_goes_through_fetch(tmp_path, monkeypatch):
    """Token and wish for weights are passed on; commit and folder come back."""
    calls = []
    save_file({"base_model.model.q.lora_A.weight": np.ones((1, 2), np.float32)}, tmp_path / "adapter_model.safetensors")
    save_file({"q.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')

    def fetch(ref, *, weights, token):
        calls.append((str(ref), weights, token))
        raw = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
        headers = {name: data[: 8 + int.from_bytes(data[:8], "little")] for name, data in raw.items()}
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        return HubSnapshot(tmp_path, "c0ffee", None if weights else headers, sizes)

    monkeypatch.setattr(hub, "fetch", fetch)
    ref = ModelRef.parse("hub:org/name@main")
    assert open_checkpoint(ref, weights=False, token="secret").commit == "c0ffee"
    assert open_checkpoint(ref).has_weights
    for weights in (False, True):
        adapter = open_adapter(ref, weights=weights)
        assert adapter.commit == "c0ffee"
        assert list(adapter.tensors) == ["base_model.model.q.lora_A.weight"]
    assert calls == [
        ("hub:org/name@main", False, "secret"),
        ("hub:org/name@main", True, None),
        ("hub:org/name@main", False, None),
        ("hub:org/name@main", True, None),
    ]


def test_a_link_that_leads_out_of_a_source_is_refused(tmp_path):
    (tmp_path / "private").write_text("secret")
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "vocab.txt").symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match=r"vocab.txt' is a link that leads out of its checkpoint"):
        sidecar_files(folder)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.json").symlink_to("tokenizer.json")
    assert [path.name for path in sidecar_files(folder)] == ["tokenizer.json", "vocab.json"]


def test_links_of_the_hubs_cache_to_its_blobs_are_inside(tmp_path):
    home = tmp_path / "models--org--name"
    (home / "blobs").mkdir(parents=True)
    (home / "blobs" / "abc").write_text("{}")
    (home / "snapshots" / "1").mkdir(parents=True)
    (home / "snapshots" / "1" / "tokenizer.json").symlink_to("../../blobs/abc")
    assert [path.name for path in sidecar_files(home / "snapshots" / "1")] == ["tokenizer.json"]
