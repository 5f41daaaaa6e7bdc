"""Bytes to numbers and back, against torch and the safetensors library."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcompose.checkpoint import (
    DTYPE_BITS,
    MERGEABLE_DTYPES,
    TensorEntry,
    TensorFiles,
    decode,
    digest_tensor,
    encode,
    raw_dtype,
    read_float32,
    read_header,
    read_tensor,
)
from mcompose.errors import CheckpointError

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip


def _entries(path):
    return {entry.key: entry for entry in read_header(path).entries}


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_every_dtype_reads_back_as_the_library_wrote_it(tmp_path, dtype):
    import torch
    from safetensors.torch import save_file as save_torch

    torch_dtype = getattr(torch, TORCH_NAMES[dtype])
    raw = torch.frombuffer(bytearray(range(48)), dtype=torch.uint8)
    raw = raw % 2 if dtype == "BOOL" else raw
    tensor = raw.view(torch_dtype).reshape(3, -1)
    path = tmp_path / "m.safetensors"
    tensors = {"x": tensor, "none": tensor[:0].clone()}
    if dtype != "F4":  # a single half byte cannot be stored
        tensors["scalar"] = tensor[0, 0].clone()
    save_torch(tensors, path)
    entries = _entries(path)
    assert {entry.dtype for entry in entries.values()} == {dtype}
    values = read_tensor(entries["x"])
    assert values.tobytes() == bytes(raw.tolist())
    assert values.dtype == raw_dtype(dtype)
    assert read_tensor(entries["none"]).size == 0
    if DTYPE_BITS[dtype] >= 8:
        assert values.shape == tuple(tensor.shape)
        assert read_tensor(entries["none"]).shape == (0, tensor.shape[1])
        assert read_tensor(entries["scalar"]).shape == ()
        assert read_tensor(entries["x"], (1, 3)).tobytes() == values[1:3].tobytes()
        assert read_tensor(entries["x"], (2, 2)).shape == (0, tensor.shape[1])


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_dtypes_that_no_library_writes_are_raw_bytes(tmp_path, dtype):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(10)))
    entry = TensorEntry("x", dtype, (2, 4), path, 4, 6)
    assert read_tensor(entry).tolist() == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="has no rows"):
        read_tensor(entry, (0, 1))


def _hard_floats() -> np.ndarray:
    """Every sign and exponent with mantissas around the points where rounding turns, and what is special."""
    exponents = np.arange(256, dtype=np.uint32) << 23
    mantissas = [
        0,
        1,
        0x7FFF,
        0x8000,
        0x8001,
        0xFFFF,
        0x17FFF,
        0x18000,
        0xFFF,
        0x1000,
        0x1001,
        0x3000,
        0x7FFFFF,
        0x400000,
    ]
    bits = (exponents[:, None] | np.array(mantissas, np.uint32)).ravel()
    noise = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    return np.concatenate([bits, bits | np.uint32(1 << 31), noise]).view(np.float32)


@pytest.mark.parametrize("dtype", MERGEABLE_DTYPES)
def test_encoding_rounds_as_torch_does(dtype):
    import torch

    values = _hard_floats()
    wide = getattr(torch, TORCH_NAMES[dtype])
    expected = torch.from_numpy(values.copy()).to(wide)
    ours = encode(values, dtype)
    bits = {16: (np.uint16, torch.int16), 32: (np.uint32, torch.int32), 64: (np.uint64, torch.int64)}[DTYPE_BITS[dtype]]
    theirs = expected.view(bits[1]).numpy().view(bits[0])
    number = ~np.isnan(values)
    assert np.array_equal(ours.view(bits[0])[number], theirs[number])
    assert np.isnan(decode(ours, dtype)[~number]).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_decoding_every_value_is_exact(dtype):
    import torch

    every = np.arange(65536, dtype=np.uint16)
    raw = every.view(raw_dtype(dtype))
    expected = torch.from_numpy(every.view(np.int16).copy()).view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    ours = decode(raw, dtype)
    number = ~np.isnan(expected)
    assert np.array_equal(ours[number].view(np.uint32), expected[number].view(np.uint32))
    assert np.isnan(ours[~number]).all()
    assert np.array_equal(encode(ours, dtype).view(np.uint16)[number], every[number])


def test_bfloat16_by_hand():
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, 3.4e38, np.inf, 0.1], np.float32)
    # 1 + 2**-8 is half-way and goes to the even 1.0; 1 + 3 * 2**-8 is half-way and goes up; 3.4e38 rounds to infinity.
    assert [hex(bits) for bits in encode(values, "BF16")] == [
        "0x3f80", "0x3f80", "0x3f82", "0x8000", "0x7f80", "0x7f80", "0x3dcd",
    ]  # fmt: skip


def test_shapes_survive(tmp_path):
    for shape in [(), (0,), (3, 0, 2), (1, 1), (2, 3, 4)]:
        values = np.ones(shape, np.float32)
        for dtype in MERGEABLE_DTYPES:
            assert encode(values, dtype).shape == decode(encode(values, dtype), dtype).shape == shape
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(decode(encode(strided, "BF16"), "BF16"), strided)


def test_float64_is_rounded_once_and_overflow_is_infinite():
    raw = np.array([1 + 2.0**-24 + 2.0**-40, 1e300, -1e300])
    assert decode(raw, "F64").tolist() == [np.float32(1 + 2.0**-23), np.inf, -np.inf]
    assert encode(np.array([1e6], np.float32), "F16").tolist() == [np.inf]


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - set(MERGEABLE_DTYPES)))
def test_no_arithmetic_on_other_dtypes(dtype):
    with pytest.raises(ValueError, match=dtype):
        decode(np.zeros(1, np.uint8), dtype)
    with pytest.raises(ValueError, match=dtype):
        encode(np.zeros(1, np.float32), dtype)


def test_rows_of_a_tensor(tmp_path):
    path = tmp_path / "m.safetensors"
    values = np.arange(60, dtype=np.float16).reshape(5, 4, 3)
    save_file({"x": values, "s": np.array(3, np.float32)}, path)
    entries = _entries(path)
    assert np.array_equal(read_float32(entries["x"], (1, 4)), values[1:4])
    with TensorFiles() as files:
        assert np.array_equal(read_float32(entries["x"], files=files), values)
    for rows in [(-1, 2), (3, 2), (0, 6)]:
        with pytest.raises(ValueError, match="has no rows"):
            read_tensor(entries["x"], rows)
    with pytest.raises(ValueError, match="has no rows"):
        read_tensor(entries["s"], (0, 1))


def test_short_reads_are_completed(tmp_path, monkeypatch):
    import os

    path = tmp_path / "m.safetensors"
    values = np.arange(1000, dtype=np.float32)
    save_file({"x": values}, path)
    entry = _entries(path)["x"]
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:7]], offset))
    assert np.array_equal(read_tensor(entry), values)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"x": np.arange(1000, dtype=np.float32)}, path)
    entry = _entries(path)["x"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="ends at byte"):
        read_tensor(entry)
    with pytest.raises(CheckpointError, match="ends at byte"):
        digest_tensor(entry)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensor(entry)


def test_pieces_outside_a_tensor_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"x": np.zeros(4, np.float32)}, path)
    with TensorFiles() as files, pytest.raises(ValueError, match="are not all in tensor 'x'"):
        files.read_into(_entries(path)["x"], memoryview(bytearray(8)), start=12)


def test_threads_share_open_files(tmp_path):
    path = tmp_path / "m.safetensors"
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    save_file({"x": values}, path)
    entry = _entries(path)["x"]
    found: dict[int, bool] = {}
    with TensorFiles() as files:

        def work(number: int) -> None:
            rows = [(n, n + 1) for n in range(number, 64, 4)]
            found[number] = all(np.array_equal(read_tensor(entry, r, files=files)[0], values[r[0]]) for r in rows)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(files._descriptors) == 1
    assert found == dict.fromkeys(range(4), True)


def test_digest_is_xxh3_of_the_bytes(tmp_path):
    import xxhash

    path = tmp_path / "m.safetensors"
    values = np.arange(3_000_000, dtype=np.uint8)
    save_file({"x": values, "none": np.zeros(0, np.float32)}, path)
    entries = _entries(path)
    assert digest_tensor(entries["x"]) == "xxh3:" + xxhash.xxh3_128_hexdigest(values.tobytes())
    assert digest_tensor(entries["none"]) == "xxh3:" + xxhash.xxh3_128_hexdigest(b"")
