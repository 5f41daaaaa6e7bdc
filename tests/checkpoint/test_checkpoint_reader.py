"""Checkpoints open as transformers opens them, or are refused with the name of the culprit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcompose.checkpoint import HubSnapshot, is_tied, open_checkpoint
from mcompose.checkpoint.reader import _open_snapshot
from mcompose.checkpoint.weight_files import plain_name
from mcompose.errors import CheckpointError
from mcompose.refs import ModelRef

ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def _save(folder, name="model.safetensors", **tensors):
    folder.mkdir(exist_ok=True, parents=True)
    tensors = tensors or {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def _shards(folder, weight_map=None):
    _save(folder, ONE, z=np.ones(2, np.float32), a=np.ones(3, np.float32))
    _save(folder, TWO, m=np.ones(4, np.float32))
    weight_map = weight_map or {"m": TWO, "z": ONE, "a": ONE}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_a_single_file(tmp_path):
    checkpoint = open_checkpoint(_save(tmp_path / "m"))
    assert (
        {key: entry.shape for key, entry in checkpoint.tensors.items()} == {"a": (2, 3), "b": (4,)} == checkpoint.shapes
    )
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.model_type == "llama"
    assert checkpoint.total_bytes == 32
    assert checkpoint.commit is None
    assert checkpoint.metadata == {"format": "pt"}
    assert str(checkpoint.ref) == f"local:{tmp_path / 'm'}"


def test_a_reference_is_relative_to_the_recipe(tmp_path):
    _save(tmp_path / "donors" / "m")
    checkpoint = open_checkpoint(ModelRef.parse("local:donors/m"), relative_to=tmp_path)
    assert checkpoint.folder == tmp_path / "donors" / "m"
    with pytest.raises(CheckpointError, match="'local:donors/x': the folder"):
        open_checkpoint(ModelRef.parse("local:donors/x"), relative_to=tmp_path)


def test_shards_come_by_file_name_then_by_place(tmp_path):
    checkpoint = open_checkpoint(_shards(tmp_path / "m"))
    places = [(entry.file.name, entry.offset) for entry in checkpoint.tensors.values()]
    assert places == sorted(places)
    assert [key for key in checkpoint.tensors if key in "za"] == list(checkpoint.tensors)[:2]
    assert checkpoint.weight_files == (ONE, TWO)


def test_a_single_file_wins_over_an_index_as_in_transformers(tmp_path):
    folder = _shards(tmp_path / "m")
    _save(folder, other=np.ones(1, np.float32))
    assert list(open_checkpoint(folder).tensors) == ["other"]


def test_another_name_and_the_authors_own_duplicate(tmp_path):
    folder = _save(tmp_path / "m", "weights.safetensors")
    _save(folder, "consolidated.safetensors", x=np.ones(1, np.float32))
    assert open_checkpoint(folder).weight_files == ("weights.safetensors",)


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors", "C:x.safetensors",
     "a\0.safetensors", "weights.bin", 3, None, ["x"], "line\nfeed.safetensors"],
)  # fmt: skip
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    _save(tmp_path, "other.safetensors")
    folder = _shards(tmp_path / "m", {"m": TWO, "z": ONE, "a": name})
    with pytest.raises(CheckpointError, match="which is not a safetensors file in its folder"):
        open_checkpoint(folder)
    assert not plain_name(name) or name == "weights.bin"


def test_links_in_the_hubs_cache_are_followed(tmp_path):
    blobs = tmp_path / "blobs"
    folder = _shards(tmp_path / "snapshots" / "c0ffee")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert len(open_checkpoint(folder).tensors) == 3


def test_a_missing_shard_is_named(tmp_path):
    folder = _shards(tmp_path / "m")
    (folder / TWO).unlink()
    with pytest.raises(CheckpointError, match=f"lacks '{TWO}'"):
        open_checkpoint(folder)
    (folder / TWO).symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=f"{TWO}' does not exist"):
        open_checkpoint(folder)


def test_index_and_files_must_agree(tmp_path):
    folder = _shards(tmp_path / "m", {"m": TWO, "z": ONE, "a": ONE, "ghost": ONE})
    with pytest.raises(CheckpointError, match=f"places 'ghost' in '{ONE}', which does not contain it"):
        open_checkpoint(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"m": TWO, "z": ONE}}))
    with pytest.raises(CheckpointError, match=f"'{ONE}' of .* contains 'a', which is not in the index"):
        open_checkpoint(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"m": ONE, "z": ONE, "a": TWO}}))
    with pytest.raises(CheckpointError, match="which does not contain it"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = _shards(tmp_path / "m")
    _save(folder, TWO, m=np.ones(4, np.float32), a=np.ones(3, np.float32))
    with pytest.raises(CheckpointError, match=f"'a' of .* is in two files: '{ONE}' and '{TWO}'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map":{"a":"x","a":"y"}}']
)
def test_a_broken_index_is_refused(tmp_path, text):
    folder = _shards(tmp_path / "m")
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(folder)


def _touch(folder, *names):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ((), "not contain safetensors weights", "Hugging Face checkpoint"),
        (("pytorch_model.bin",), r"pickle \('pytorch_model\.bin'\)", "save_pretrained"),
        (("pytorch_model-00001-of-00002.bin", "training_args.bin"), "pickle", "save_pretrained"),
        (("model.ckpt",), "pickle", "save_pretrained"),
        (("weights.pth",), "pickle", "save_pretrained"),
        (("training_args.bin", "optimizer.pt"), "not contain safetensors weights", ""),
        (("model-Q4_K_M.gguf",), "GGUF files cannot be merged", "original checkpoint"),
        (("consolidated.safetensors", "params.json"), "author's own format", "save_pretrained"),
        (("adapter_config.json", "adapter_model.safetensors"), "is an adapter", "`adapter`"),
        ((ONE, TWO), "2 safetensors files .* but does not have model.safetensors.index.json", "index"),
        ((ONE,), "1 safetensors files .* but does not have model.safetensors.index.json", "index"),
    ],
)
def test_other_formats_are_refused_with_the_way_out(tmp_path, names, message, hint):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(_touch(tmp_path / "m", *names))
    assert hint in caught.value.hint


def test_a_pickle_beside_safetensors_is_ignored(tmp_path):
    folder = _save(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert len(open_checkpoint(folder).tensors) == 2


@pytest.mark.parametrize("text", [None, "", "[]", "{", "nonsense", "\x00"])
def test_a_missing_or_broken_config_is_refused(tmp_path, text):
    folder = _save(tmp_path / "m")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_config_with_a_byte_order_mark_or_of_any_size(tmp_path):
    folder = _save(tmp_path / "m")
    (folder / "config.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"id2label": {str(i): "x" * 50 for i in range(20_000)}}).encode()
    )
    assert len(open_checkpoint(folder).config["id2label"]) == 20_000
    with (folder / "config.json").open("wb") as handle:
        handle.truncate(65 * 1024 * 1024)
    with pytest.raises(CheckpointError, match="is larger than"):
        open_checkpoint(folder)


def test_a_file_for_a_folder(tmp_path):
    folder = _save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="is a file") as caught:
        open_checkpoint(folder / "model.safetensors")
    assert f"local:{folder}" in caught.value.hint


CARD = """---
license: apache-2.0
base_model:
- org/one
- org/two
---
# Title
license: wrong
"""


@pytest.mark.parametrize(
    ("card", "licence", "base_model"),
    [
        (CARD, "apache-2.0", "org/one, org/two"),
        ("\ufeff---\nlicense: mit\n---\n", "mit", ""),
        ("---\nlicense: other\nlicense_name: own-terms\n---\n", "own-terms", ""),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0", ""),
        ("---\nlicense: {a: b}\nbase_model: 3\n---\n", "", ""),
        ("---\nlicense: [unclosed\n---\n", "", ""),
        ("---\nno end", "", ""),
        ("---\n- a list\n---\n", "", ""),
        ("---\n" + "[" * 5000 + "\n---\n", "", ""),
        ("---\nwhen: 2024-99-99\n---\n", "", ""),
        ("plain text", "", ""),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_the_model_card_is_read_with_patience(tmp_path, card, licence, base_model):
    folder = _save(tmp_path / "m")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.licence, checkpoint.base_model) == (licence, base_model)


def test_a_card_in_another_encoding_does_not_stop_anything(tmp_path):
    folder = _save(tmp_path / "m")
    (folder / "README.md").write_bytes(b"---\nlicense: mit\nauthor: Ren\xe9\n---\n")
    assert open_checkpoint(folder).licence == "mit"


def test_sidecars_are_what_travels_with_the_weights(tmp_path):
    folder = _save(tmp_path / "m")
    travel = [
        "added_tokens.json", "additional_chat_templates/tool.jinja", "chat_template.jinja", "generation_config.json",
        "merges.txt", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json",
        "spm.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "video_preprocessor_config.json",
        "vocab.json", "vocab.txt",
    ]  # fmt: skip
    stay = ["README.md", "pytorch_model.bin", "modeling_x.py", "tokenization_x.py", "optimizer.pt", "tokenizer.bin"]
    (folder / "additional_chat_templates").mkdir()
    for name in travel + stay:
        (folder / name).write_text("x")
    checkpoint = open_checkpoint(folder)
    assert [path.relative_to(folder).as_posix() for path in checkpoint.sidecars()] == travel
    assert [path.name for path in checkpoint.code()] == ["modeling_x.py", "tokenization_x.py"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, ""),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"quantization_config": None}, ""),
    ],
)
def test_quantised_checkpoints_say_so(tmp_path, config, name):
    folder = _save(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).quantised == name


@pytest.mark.parametrize(
    ("config", "keys", "tied"),
    [
        ({"tie_word_embeddings": True}, ["lm_head.weight"], True),
        ({"tie_word_embeddings": False}, [], False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, [], True),
        ({"tie_word_embeddings": False, "thinker_config": {"text_config": {"tie_word_embeddings": True}}}, [], True),
        ({}, ["model.embed_tokens.weight"], True),
        ({}, ["model.embed_tokens.weight", "language_model.lm_head.weight"], False),
        ({}, [], False),
    ],
)
def test_tied_heads(config, keys, tied):
    assert is_tied(config, keys) is tied


def test_headers_without_weights(tmp_path):
    whole = open_checkpoint(_shards(tmp_path / "m"))
    headers, sizes = {}, {}
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in whole.folder.iterdir():
        sizes[path.name] = path.stat().st_size
        raw = path.read_bytes()
        if path.suffix == ".safetensors":
            headers[path.name] = raw[: 8 + int.from_bytes(raw[:8], "little")]
        else:
            (bare / path.name).write_bytes(raw)
    ref = ModelRef.parse("hub:org/m")
    remote = _open_snapshot(ref, HubSnapshot(bare, "c0ffee", headers, sizes))
    assert [(e.key, e.dtype, e.shape, e.offset, e.nbytes) for e in remote.tensors.values()] == [
        (e.key, e.dtype, e.shape, e.offset, e.nbytes) for e in whole.tensors.values()
    ]
    assert not remote.has_weights
    assert remote.commit == "c0ffee"
    sizes[TWO] -= 1
    with pytest.raises(CheckpointError, match="truncated"):
        _open_snapshot(ref, HubSnapshot(bare, "c0ffee", headers, sizes))
    del headers[TWO]
    with pytest.raises(CheckpointError, match="was not fetched"):
        _open_snapshot(ref, HubSnapshot(bare, "c0ffee", headers, sizes))


def test_opening_needs_no_heavy_library(tmp_path):
    folder = _save(tmp_path / "m")
    code = (
        "import sys; from pathlib import Path; from mcompose.checkpoint import open_checkpoint;"
        f"open_checkpoint(Path({str(folder)!r})).licence;"
        "heavy = ('torch', 'transformers', 'safetensors', 'huggingface_hub', 'peft', 'numba');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
