"""Headers are read as the safetensors library reads them, and nothing in them is believed."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from mcompose.checkpoint import DTYPE_BITS, parse_header, read_header, read_json_object
from mcompose.checkpoint.headers import MAX_HEADER_BYTES
from mcompose.errors import CheckpointError


def _file(table, data=b"", *, pad=b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text + pad).to_bytes(8, "little") + text + pad + data


def _tensor(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _parse(raw, tmp_path):
    return parse_header(raw, file=tmp_path / "m.safetensors", size=len(raw))


def test_entries_come_in_the_order_of_the_data_with_absolute_offsets(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.int8)}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    raw = path.read_bytes()
    assert header.metadata == {"format": "pt"}
    assert [entry.offset for entry in header.entries] == sorted(entry.offset for entry in header.entries)
    assert {entry.key: (entry.dtype, entry.shape) for entry in header.entries} == {
        "b": ("F32", (2, 3)),
        "a": ("I8", (3,)),
    }
    for entry in header.entries:
        assert raw[entry.offset : entry.offset + entry.nbytes] == tensors[entry.key].tobytes()


def test_tensors_of_no_elements_and_no_dimensions(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"none": np.zeros((0, 7), np.float16), "scalar": np.array(2.5), "row": np.ones(3, np.uint8)}, path)
    found = {entry.key: (entry.shape, entry.nbytes) for entry in read_header(path).entries}
    assert found == {"none": ((0, 7), 0), "scalar": ((), 8), "row": ((3,), 3)}


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_format(tmp_path, dtype):
    raw = _file({"a": _tensor(0, DTYPE_BITS[dtype], dtype, (2, 4))}, bytes(DTYPE_BITS[dtype]))
    (entry,) = _parse(raw, tmp_path).entries
    assert (entry.dtype, entry.nbytes) == (dtype, DTYPE_BITS[dtype])
    deserialize(raw)  # the library agrees that the file is sound


def test_a_padded_header_is_accepted(tmp_path):
    assert len(_parse(_file({"a": _tensor()}, bytes(4), pad=b"     "), tmp_path).entries) == 1


BROKEN = {
    "empty file": (b"", "at least 8"),
    "short file": (b"abc", "at least 8"),
    "length above the file": ((1000).to_bytes(8, "little") + b"{}", "header of 1000 bytes, but the file has 10"),
    "absurd length": ((2**63).to_bytes(8, "little") + b"{}", "the format allows"),
    "length of zero": (bytes(8) + b"{}", "header of 0 bytes"),
    "no JSON": (_file(b"{abc}"), "not valid JSON"),
    "not UTF-8": (_file(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (_file(b"[1]"), "not a JSON object"),
    "deep nesting": (_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "endless number": (_file(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "a key twice": (_file(b'{"a":1,"a":2}'), "occurs twice"),
    "lone surrogate": (_file(b'{"\\ud800":{}}'), "not valid text"),
    "metadata of numbers": (_file({"__metadata__": {"a": 1}}), "must map names to text"),
    "entry is no table": (_file({"a": 3}), "must have exactly dtype"),
    "entry lacks offsets": (_file({"a": {"dtype": "F32", "shape": []}}), "must have exactly dtype"),
    "unknown dtype": (_file({"a": _tensor(dtype="F33")}, bytes(4)), "unknown dtype 'F33'"),
    "dtype is a list": (_file({"a": _tensor(dtype=["F32"])}, bytes(4)), "unknown dtype"),
    "negative dimension": (_file({"a": _tensor(shape=(-1,))}, bytes(4)), "non-negative integers"),
    "fractional dimension": (_file({"a": _tensor(shape=(1.0,))}, bytes(4)), "non-negative integers"),
    "boolean dimension": (_file({"a": _tensor(shape=(True,))}, bytes(4)), "non-negative integers"),
    "descending offsets": (_file({"a": _tensor(4, 0)}, bytes(4)), "ascending"),
    "three offsets": (_file({"a": {**_tensor(), "data_offsets": [0, 4, 4]}}, bytes(4)), "ascending"),
    "absurd offsets": (_file({"a": _tensor(0, 2**62)}, bytes(4)), "truncated"),
    "absurd shape": (_file({"a": _tensor(shape=(2**40,) * 9)}, bytes(4)), "4 bytes long"),
    "absurd shape of nothing": (_file({"a": _tensor(shape=(2**40,) * 9 + (0,))}, bytes(4)), "4 bytes long"),
    "shape too small": (_file({"a": _tensor(0, 8)}, bytes(8)), "8 bytes long"),
    "half a byte": (_file({"a": _tensor(0, 1, "F4", (3,))}, bytes(1)), "1 bytes long"),
    "overlap": (_file({"a": _tensor(), "b": _tensor(2, 6)}, bytes(6)), "overlaps"),
    "same place twice": (_file({"a": _tensor(), "b": _tensor()}, bytes(4)), "overlaps"),
    "hole at the start": (_file({"a": _tensor(4, 8)}, bytes(8)), "leaves a gap"),
    "hole inside": (_file({"a": _tensor(), "b": _tensor(8, 12)}, bytes(12)), "leaves a gap"),
    "bytes left over": (_file({"a": _tensor()}, bytes(5)), "accounts for"),
    "truncated": (_file({"a": _tensor()}, bytes(3)), "truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused_with_the_file_and_the_reason(tmp_path, name):
    raw, message = BROKEN[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        _parse(raw, tmp_path)
    assert "m.safetensors" in str(caught.value)
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_truncated_file_names_both_sizes(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"at least {size} bytes, the file has {size - 100}"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_header(tmp_path)


def test_absurd_sizes_cost_no_memory(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(MAX_HEADER_BYTES.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_header(path)
    for name in ("absurd length", "absurd shape", "absurd offsets"):
        with pytest.raises(CheckpointError):
            _parse(BROKEN[name][0], tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


SOUND = _file(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": _tensor(0, 24, "F32", (2, 3)),
        "b": _tensor(24, 26, "BF16", ()),
        "c": _tensor(26, 26, "I64", (0, 4)),
        "d": _tensor(26, 28, "F4", (4,)),
    },
    bytes(28),
)


def _agrees_with_the_library(raw, tmp_path) -> None:
    """Ours accepts only what the library accepts; whatever it refuses, it refuses with its own error."""
    try:
        entries = _parse(raw, tmp_path).entries
    except CheckpointError:
        return
    try:
        theirs = dict(deserialize(raw))
    except SafetensorError as error:
        pytest.fail(f"the library refuses this: {error}")
    assert {entry.key for entry in entries} == set(theirs)
    for entry in entries:
        assert raw[entry.offset : entry.offset + entry.nbytes] == bytes(theirs[entry.key]["data"])


@settings(max_examples=400, deadline=None)
@example(b"")
@given(st.binary(max_size=200))
def test_any_bytes_raise_only_checkpoint_errors(tmp_path_factory, raw):
    folder = tmp_path_factory.getbasetemp()
    _agrees_with_the_library(raw, folder)
    _agrees_with_the_library(_file(raw, bytes(8)), folder)


def test_mutated_headers_raise_only_checkpoint_errors(tmp_path):
    dice = random.Random(0)
    alphabet = b'{}[]",:0123456789-.eEtruFfalsn\\u\x00\xff '
    accepted = 0
    for _ in range(20_000):
        raw = bytearray(SOUND)
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(raw))
            kind = dice.randrange(3)
            if kind == 0:
                raw[place] = dice.choice(alphabet)
            elif kind == 1:
                del raw[place]
            else:
                raw.insert(place, dice.choice(alphabet))
        if dice.random() < 0.7:  # keep the length true, so that the JSON behind it is reached
            end = raw.rfind(b"}") + 1
            raw[:8] = max(end - 8, 0).to_bytes(8, "little")
        try:
            _parse(bytes(raw), tmp_path)
            accepted += 1
        except CheckpointError:
            continue
        _agrees_with_the_library(bytes(raw), tmp_path)
    assert accepted > 50, "the mutations never leave a sound file, so they prove little"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPE_BITS, "X"]) | JSON,
                "shape": st.lists(st.integers(0, 9), max_size=3) | JSON,
                "data_offsets": st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted) | JSON,
            }
        )
        | JSON,
        max_size=3,
    ),
    st.integers(0, 64),
)
def test_any_table_raises_only_checkpoint_errors(tmp_path_factory, table, size):
    _agrees_with_the_library(_file(table, bytes(size)), tmp_path_factory.getbasetemp())


def test_json_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2}')
    assert read_json_object(path) == {"a": 2}
    with pytest.raises(CheckpointError, match="'a' occurs twice"):
        read_json_object(path, unique=True)
    for text in ("", "[]", "{", "null", "{'a': 1}"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_json_object(path)
