"""``diff`` against numpy by hand."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcompose.anatomy import Anatomy, Slot
from mcompose.checkpoint import encode, open_checkpoint
from mcompose.merge.diff import CHUNK, diff


def _checkpoint(folder, **tensors):
    folder.mkdir()
    save_file(
        {key.replace("__", "."): np.asarray(value) for key, value in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text("{}")
    return open_checkpoint(folder)


def _anatomy(*slots):
    table = {key: Slot(key, name, part, layer) for key, name, part, layer in slots}
    return Anatomy("llama", "LlamaForCausalLM", True, table, {}, 2)


def _by_name(report):
    return {tensor.name: tensor for tensor in report.tensors}


def test_values_by_hand(tmp_path):
    a = _checkpoint(tmp_path / "a", x=np.array([3, 4, 0], np.float32), same=np.ones(2, np.float32))
    b = _checkpoint(tmp_path / "b", x=np.array([3, 4, 2], np.float32), same=np.ones(2, np.float32))
    report = diff(a, b)
    found = _by_name(report)
    assert (found["x"].state, found["x"].distance, found["x"].max_abs) == ("differs", 0.4, 2.0)
    assert (found["same"].state, found["same"].distance, found["same"].max_abs) == ("equal", 0.0, 0.0)
    (whole,) = report.parts
    assert whole.counts == {"equal": 1, "differs": 1}
    assert whole.distance == pytest.approx(2 / math.sqrt(25 + 2), rel=1e-12)
    assert whole.max_abs == 2.0
    assert not report.equal


def test_every_state(tmp_path):
    shared = {"f16": np.ones(2, np.float16), "ints": np.arange(4), "shape": np.ones((2, 3), np.float32)}
    a = _checkpoint(tmp_path / "a", **shared, left=np.ones(1), ints2=np.arange(3), kind=np.arange(3))
    b = _checkpoint(
        tmp_path / "b",
        right=np.ones(1),
        f16=np.full(2, 1.5, np.float32),
        ints=np.arange(4),
        shape=np.ones((3, 2), np.float32),
        ints2=np.arange(3) + 1,
        kind=np.arange(3, dtype=np.int32),
    )
    found = _by_name(diff(a, b))
    states = {name: tensor.state for name, tensor in found.items()}
    assert states == {
        "f16": "dtype", "ints": "equal", "shape": "shape", "left": "only_a", "right": "only_b", "ints2": "differs",
        "kind": "dtype",
    }  # fmt: skip
    assert (found["f16"].distance, found["f16"].max_abs) == (0.5, 0.5)
    assert found["ints2"].distance is None
    assert found["shape"].a == "shape F32 [2, 3]"
    assert found["shape"].b == "shape F32 [3, 2]"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
def test_pieces_add_up_to_numpy_on_the_whole(tmp_path, size):
    generator = np.random.default_rng(size)
    x, y = generator.standard_normal((2, size)).astype(np.float32)
    if size:
        y[: size // 2] = x[: size // 2]
    report = diff(_checkpoint(tmp_path / "a", x=x), _checkpoint(tmp_path / "b", x=y))
    (tensor,) = report.tensors
    delta, wide = (x - y).astype(np.float64), x.astype(np.float64)
    if size:
        assert tensor.distance == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(wide), rel=1e-12)
        assert tensor.max_abs == np.abs(x - y).max()
    assert tensor.state == ("differs" if size else "equal")


def test_bfloat16_is_compared_as_numbers(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    x, y = torch.randn(100, generator=torch.Generator().manual_seed(0)), torch.full((100,), 0.1)
    for name, values in (("a", x), ("b", y)):
        (tmp_path / name).mkdir()
        save_torch({"x": values.bfloat16()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    (tensor,) = diff(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")).tensors
    one, other = x.bfloat16().double(), y.bfloat16().double()
    assert tensor.distance == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-6)
    assert encode(np.array([0.1], np.float32), "BF16")[0] == 0x3DCD


def test_zeros_and_what_is_not_finite(tmp_path):
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    bad = np.array([np.nan, np.inf, 1], np.float32)
    a = _checkpoint(tmp_path / "a", grown=zero, nan=bad, worse=one, minus=np.array([0.0], np.float32))
    b = _checkpoint(tmp_path / "b", grown=one, nan=bad, worse=bad, minus=np.array([-0.0], np.float32))
    report = diff(a, b)
    found = _by_name(report)
    assert found["grown"].distance == math.inf
    assert found["nan"].state == "equal"
    assert found["worse"].state == "differs"
    assert math.isnan(found["worse"].distance)
    assert (found["minus"].state, found["minus"].distance) == ("differs", 0.0)
    json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_tensors_are_matched_by_the_name_that_both_share(tmp_path):
    weights = {"q": np.ones((2, 2), np.float32), "v": np.full((2, 2), 2, np.float32)}
    a = _checkpoint(tmp_path / "a", old__layers__0__q=weights["q"], vision__v=weights["v"], buffer=np.ones(1))
    b = _checkpoint(tmp_path / "b", new__layers__0__q=weights["q"] * 3, tower__v=weights["v"], extra=np.ones(1))
    anatomy_a = _anatomy(
        ("old.layers.0.q", "layers.0.q", "language", 0),
        ("vision.v", "v", "encoder", None),
        ("buffer", "q", "unused", None),
    )
    anatomy_b = _anatomy(
        ("new.layers.0.q", "layers.0.q", "language", 0),
        ("tower.v", "v", "encoder", None),
        ("extra", "x", "projector", 1),
    )
    report = diff(a, b, anatomy_a=anatomy_a, anatomy_b=anatomy_b)
    assert {name: tensor.state for name, tensor in _by_name(report).items()} == {
        "layers.0.q": "differs",
        "v": "equal",
        "unused:buffer": "only_a",
        "x": "only_b",
    }
    parts = {group.part: group for group in report.parts}
    assert parts["language"].distance == 2.0
    assert parts["encoder"].counts == {"equal": 1}
    assert [(group.part, group.layer) for group in report.layers] == [
        (tensor.part, tensor.layer) for tensor in report.tensors
    ]
    text = report.to_text()
    assert "language: 1 differ  distance 2, largest 2" in text
    assert "language layer 0" in text
    assert "x: only in b (a: absent; b: extra F64 [1])" in text
    by_key = diff(a, b, anatomy_a=anatomy_a)
    assert {tensor.state for tensor in by_key.tensors} == {"only_a", "only_b"}


def test_layers_and_parts_pool_their_tensors(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"layers.{layer}.{kind}" for layer in range(2) for kind in ("q", "v")]
    x = {name: generator.standard_normal(10).astype(np.float32) for name in names}
    y = {
        name: values + np.float32(0.1) * generator.standard_normal(10).astype(np.float32) for name, values in x.items()
    }
    keys = {name: name.replace(".", "__") for name in names}
    a = _checkpoint(tmp_path / "a", **{keys[name]: x[name] for name in names})
    b = _checkpoint(tmp_path / "b", **{keys[name]: y[name] for name in names})
    anatomy = _anatomy(*((name, name, "language", int(name.split(".")[1])) for name in names))
    report = diff(a, b, anatomy_a=anatomy, anatomy_b=anatomy)

    def expected(chosen):
        one, other = (np.concatenate([t[name] for name in chosen]) for t in (x, y))
        return np.linalg.norm((one - other).astype(np.float64)) / np.linalg.norm(one.astype(np.float64))

    for group in report.layers:
        assert group.distance == pytest.approx(expected([n for n in names if f".{group.layer}." in n]), rel=1e-12)
    assert report.parts[0].distance == pytest.approx(expected(names), rel=1e-12)


def test_equal_checkpoints_say_so(tmp_path):
    a = _checkpoint(tmp_path / "a", x=np.ones(3, np.float32))
    b = _checkpoint(tmp_path / "b", x=np.ones(3, np.float32))
    report = diff(a, b)
    assert report.equal
    assert "the same 1 tensors, bit by bit" in report.to_text()
    assert report.to_dict()["equal"] is True
    assert report.to_dict()["tensors"][0]["distance"] == 0.0


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    size = 12 * CHUNK
    for name, value in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        save_file({"x": np.full(size, value, np.float32)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    tracemalloc.start()
    (tensor,) = diff(b, a).tensors
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tensor.distance == 1.0
    assert tensor.difference == math.sqrt(size)
    assert peak < 40 * CHUNK, "more than a few pieces are held at a time"
