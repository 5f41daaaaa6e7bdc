"""A planned layout is a safetensors file that every reader accepts, and the same every time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mcompose.checkpoint import DTYPE_BITS, open_checkpoint, parse_header, plan_layout, raw_dtype, read_tensor

BIG = 10**12


def _write(folder, layout, tensors):
    folder.mkdir(exist_ok=True)
    for shard in layout.shards:
        with (folder / shard.filename).open("wb") as handle:
            handle.truncate(shard.size)
            handle.write(shard.header)
            for name, offset in shard.offsets.items():
                handle.seek(offset)
                handle.write(tensors[name].tobytes())
    if layout.index_json is not None:
        (folder / "model.safetensors.index.json").write_text(layout.index_json)
    (folder / "config.json").write_text("{}")


def test_one_file_when_everything_fits():
    layout = plan_layout([("a", "F32", (2, 3)), ("b", "F16", (4,))], max_shard_size=32, metadata={"x": "1"})
    assert [shard.filename for shard in layout.shards] == ["model.safetensors"]
    assert layout.index_json is None
    (shard,) = layout.shards
    header = json.loads(shard.header[8:])
    assert header["__metadata__"] == {"format": "pt", "x": "1"}
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert len(shard.header) % 8 == 0
    assert shard.size == layout.total_bytes == len(shard.header) + 32
    assert layout.places["b"].offset == len(shard.header) + 24
    assert layout.places["b"].nbytes == 8


def test_shards_are_closed_before_they_overflow():
    tensors = [
        ("a", "U8", (6,)),
        ("b", "U8", (4,)),
        ("c", "U8", (1,)),
        ("d", "U8", (25,)),
        ("e", "U8", (0,)),
        ("f", "U8", (3,)),
    ]
    layout = plan_layout(tensors, max_shard_size=10)
    assert [list(shard.offsets) for shard in layout.shards] == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert layout.shards[2].filename == "model-00003-of-00004.safetensors"
    index = json.loads(layout.index_json or "")
    assert index["metadata"] == {"total_size": 39}
    assert index["weight_map"] == {name: layout.places[name].filename for name, _, _ in tensors}


SPECS = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 5), max_size=3)), max_size=12
).map(
    lambda items: [
        (f"t{number}é", dtype, (*shape, 4) if DTYPE_BITS[dtype] < 8 else tuple(shape))
        for number, (dtype, shape) in enumerate(items)
    ]
)


@settings(max_examples=150, deadline=None)
@given(SPECS, st.integers(1, 300))
def test_any_layout_is_sound_aligned_complete_and_repeatable(tmp_path_factory, specs, limit):
    folder = tmp_path_factory.getbasetemp()
    layout = plan_layout(specs, max_shard_size=limit)
    assert layout == plan_layout(list(specs), max_shard_size=limit)
    found = {}
    for shard in layout.shards:
        header = parse_header(shard.header, file=folder / shard.filename, size=shard.size)
        for entry in header.entries:
            found[entry.key] = (entry.key, entry.dtype, entry.shape)
            assert entry.offset == shard.offsets[entry.key]
            assert entry.offset % max(DTYPE_BITS[entry.dtype] // 8, 1) == 0
        assert sum(shard.lengths.values()) <= limit or len([n for n in shard.lengths.values() if n]) == 1
    assert found == {spec[0]: spec for spec in specs}


@pytest.mark.parametrize("limit", [BIG, 100])
def test_the_library_reads_it_back(tmp_path, limit):
    generator = np.random.default_rng(0)
    specs = [("a", "I8", (3,)), ("b", "F64", (2, 2)), ("c", "BF16", (5, 3)), ("d", "F32", (4, 4)), ("e", "F16", ()),
             ("f", "BOOL", (7,)), ("g", "F32", (0, 3)), ("h", "F8_E4M3", (9,)), ("i", "C64", (2,))]  # fmt: skip
    tensors = {
        name: generator.integers(0, 2, int(np.prod(shape)) * DTYPE_BITS[dtype] // 8, dtype=np.uint8)
        .view(raw_dtype(dtype))
        .reshape(shape)
        for name, dtype, shape in specs
    }
    layout = plan_layout(specs, max_shard_size=limit)
    assert (len(layout.shards) > 1) == (limit == 100)
    _write(tmp_path / "m", layout, tensors)
    for shard in layout.shards:
        with safe_open(tmp_path / "m" / shard.filename, "pt") as handle:
            for name in shard.offsets:
                dtype, shape = next((d, s) for n, d, s in specs if n == name)
                assert handle.get_slice(name).get_dtype() == dtype
                assert tuple(handle.get_tensor(name).shape) == shape
            assert handle.metadata() == {"format": "pt"}
    ours = open_checkpoint(tmp_path / "m")
    for name, values in tensors.items():
        assert read_tensor(ours.tensors[name]).tobytes() == values.tobytes()


@pytest.mark.parametrize("limit", [BIG, 4000])
def test_transformers_loads_it(tmp_path, limit):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    specs = [(name, "F32", tuple(values.shape)) for name, values in state.items()]
    layout = plan_layout(specs, max_shard_size=limit)
    _write(tmp_path / "m", layout, state)
    model.config.save_pretrained(tmp_path / "m")
    again, report = LlamaForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_nothing_at_all_is_one_empty_file(tmp_path):
    layout = plan_layout([], max_shard_size=10)
    assert [shard.filename for shard in layout.shards] == ["model.safetensors"]
    assert parse_header(layout.shards[0].header, file=tmp_path, size=layout.shards[0].size).entries == ()


@pytest.mark.parametrize(
    "specs",
    [[("a", "F32", (1,)), ("a", "F32", (2,))], [("a", "F33", (1,))], [("a", "F4", (3,))]],
)
def test_mistakes_of_the_author_are_refused(specs):
    with pytest.raises(ValueError, match=r"same name|unknown dtype|whole byte"):
        plan_layout(specs, max_shard_size=10)
