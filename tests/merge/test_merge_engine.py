"""The engine against sums done by hand: methods, dtypes, threads, adapters, odd tensors, bad numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from merge_bench import HIDDEN, llama, ten_rows, three
from safetensors.torch import save_file

from mcompose.checkpoint import digest_tensor, open_adapter, open_checkpoint
from mcompose.errors import CompositionError, NumericsError, RequestError
from mcompose.merge import TensorJob, build_plan, copy_job
from mcompose.merge import stream as stream_module

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
QUERY = "model.layers.1.self_attn.q_proj.weight"


def loaded(source):
    from safetensors.torch import load_file

    return load_file(source.checkpoint.folder / "model.safetensors")


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


def test_linear_is_the_weighted_mean_rounded_once(bench, dtype):
    sources = three(bench, dtype)
    weights = {"a": 0.5, "b": 0.3, "c": 0.4}
    merged, rows = bench.merge({"method": "linear", "weights": weights}, sources)
    total = np.float32(np.float32(np.float32(0.5) + np.float32(0.3)) + np.float32(0.4))
    inputs = [loaded(source) for source in sources]
    for key, value in merged.items():
        acc = inputs[0][key].float() * np.float32(0.5).item()
        acc = acc + inputs[1][key].float() * np.float32(0.3).item()
        acc = acc + inputs[2][key].float() * np.float32(0.4).item()
        assert_same_bits(value, (acc / total.item()).to(TORCH[dtype]))
    assert {row.action for row in rows} == {"merged"}
    assert rows[0].weights == (0.5, 0.3, 0.4)
    written = open_checkpoint_of(bench, bench.folder / "a")
    assert {row.name: row.digest for row in rows} == {key: digest_tensor(e) for key, e in written.items()}


def test_sources_of_several_dtypes_merge_into_the_first_ones(bench):
    sources = [bench.source(name, llama(1, dtype=kind)) for name, kind in (("a", "BF16"), ("b", "F32"), ("c", "F64"))]
    merged, _ = bench.merge({"method": "linear"}, sources)
    a, b, c = (loaded(source)[QUERY].float() for source in sources)
    assert_same_bits(merged[QUERY], (a / 3 + b / 3 + c / 3).to(torch.bfloat16))


def test_rows_come_from_where_the_segments_say(bench):
    source = bench.source("a", llama(1))
    entry = source.entry("lm_head.weight")
    job = TensorJob("table", "embedding", None, "F32", (10, HIDDEN), ten_rows(entry), note="rows")
    row = bench.run(build_plan([job], max_shard_size=10**6))[0]
    table, head = bench.read()["table"], loaded(source)["lm_head.weight"]
    assert_same_bits(table[:4], (head[:4] + head[6:10]) / 2)
    assert_same_bits(table[4:7], torch.zeros(3, HIDDEN))
    assert_same_bits(table[7:9], head[30:32])
    assert_same_bits(table[9], head[2])
    assert (row.action, row.method, row.sources, row.note) == ("merged", "linear", ("a", "a"), "rows")


def test_naivemc_defaults_to_the_mean(bench):
    sources = three(bench)[:2]
    merged, _ = bench.merge({"method": "naivemc"}, sources)
    a, b = (loaded(source) for source in sources)
    for key, value in merged.items():
        assert_same_bits(value, a[key] * 0.5 + b[key] * 0.5)


def test_task_arithmetic_adds_scaled_deltas(bench):
    sources, base = three(bench), bench.source("base", llama(0))
    weights = {"a": 1.0, "b": 0.5, "c": 0.25}
    merged, _ = bench.merge({"method": "task_arithmetic", "weights": weights}, sources, base)
    origin, inputs = loaded(base), [loaded(source) for source in sources]
    for key, value in merged.items():
        deltas = [tensors[key].double() - origin[key].double() for tensors in inputs]
        expected = origin[key].double() + deltas[0] + 0.5 * deltas[1] + 0.25 * deltas[2]
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)


def ties_by_sorting(base: np.ndarray, tensors: list[np.ndarray], weights, density: float) -> np.ndarray:
    """TIES with a full sort, in float64, by the book of mergekit's dialect."""
    kept = []
    for tensor, weight in zip(tensors, weights, strict=True):
        delta = (tensor - base).astype(np.float32).ravel()
        count = max(1, int(density * delta.size))
        mask = np.zeros(delta.size)
        mask[np.argsort(-np.abs(delta), kind="stable")[:count]] = 1
        kept.append(weight * delta.astype(np.float64) * mask)
    stacked = np.array(kept)
    sign = np.where(stacked.sum(0) >= 0, 1, -1)
    agree = (np.sign(stacked) == sign) & (stacked != 0)
    share = (agree * np.array(weights)[:, None]).sum(0)
    merged = (stacked * agree).sum(0) / np.where(share == 0, 1, share)
    return base + merged.reshape(base.shape)


def test_ties_equals_a_full_sort(bench):
    sources, base = three(bench), bench.source("base", llama(0))
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    recipe = {"method": "ties", "weights": weights, "parameters": {"density": 0.3}}
    merged, _ = bench.merge(recipe, sources, base)
    origin, inputs = loaded(base), [loaded(source) for source in sources]
    for key, value in merged.items():
        expected = ties_by_sorting(origin[key].numpy(), [t[key].numpy() for t in inputs], list(weights.values()), 0.3)
        np.testing.assert_allclose(value.numpy(), expected, rtol=2e-6, atol=1e-8)


def test_slerp_turns_from_the_first_to_the_second(bench):
    sources = three(bench)[:2]
    merged, rows = bench.merge({"method": "slerp", "parameters": {"t": 0.25}}, sources)
    a, b = (loaded(source)[QUERY].double().ravel() for source in sources)
    angle = torch.acos((a @ b) / a.norm() / b.norm())
    expected = (torch.sin(0.75 * angle) * a + torch.sin(0.25 * angle) * b) / torch.sin(angle)
    torch.testing.assert_close(merged[QUERY].double().ravel(), expected, rtol=1e-5, atol=1e-7)
    assert rows[0].weights == ()


METHODS = {
    "dare_ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.6, "gamma": 0.05},
    "model_stock": {},
    "karcher": {},
    "ties-peft": {"density": 0.4},
    "tsv": {"share": 0.5},
    "iso-c": {"lambda": 0.8},
    "wudi": {"lr": 1e-3},
    "optmerge": {"lr": 1e-2},
    "ssam": {"share": 0.5},
    "swudi": {"lambda": 0.3},
    "aswudi": {"lambda": 0.3},
}


@pytest.mark.parametrize("method", METHODS)
def test_chunks_give_what_the_whole_tensor_gives(bench, monkeypatch, method):
    from mcompose.methods import METHODS as NATIVE
    from mcompose.methods import merge_tensors

    monkeypatch.setattr(stream_module, "CHUNK", 100)
    sources, base = three(bench), bench.source("base", llama(0))
    recipe = {"method": method, "parameters": METHODS[method], "seed": 7}
    merged, _ = bench.merge(recipe, sources, base)
    origin, inputs = loaded(base), [loaded(source) for source in sources]
    for key, value in merged.items():
        whole = merge_tensors(
            method,
            [t[key].numpy() for t in inputs],
            base=origin[key].numpy() if NATIVE.get(method).base != "unused" else None,
            seed=7,
            tensor_name=key.removeprefix("model."),
            sources=["a", "b", "c"],
            **METHODS[method],
        )
        np.testing.assert_allclose(value.numpy(), whole, rtol=1e-5, atol=1e-7)


def test_ties_global_uses_one_threshold_for_the_whole_model(bench):
    sources, base = three(bench)[:1], bench.source("base", llama(0))
    recipe = {"method": "ties-global", "parameters": {"density": 0.1}}
    merged, _ = bench.merge(recipe, sources, base, threads=2)
    origin, tuned = loaded(base), loaded(sources[0])
    deltas = {key: (tuned[key] - origin[key]).numpy() for key in merged}
    flat = np.sort(np.abs(np.concatenate([delta.ravel() for delta in deltas.values()])))[::-1]
    threshold = flat[int(0.1 * flat.size)]
    for key, value in merged.items():
        kept = np.abs(value.numpy() - origin[key].numpy()) > 1e-7
        clear = np.abs(np.abs(deltas[key]) - threshold) > 1e-4
        assert np.array_equal(kept[clear], (np.abs(deltas[key]) > threshold)[clear])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "ties-global", "slerp", "tsv", "wudi"])
def test_thread_count_and_chunking_leave_the_bytes_alone(bench, monkeypatch, method):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    parameters = {"slerp": {"t": 0.3}, "linear": {}, "tsv": {}, "wudi": {"lr": 1e-3}}.get(method, {"density": 0.4})
    plan = bench.plan(
        {"method": method, "parameters": parameters},
        sources[:2] if method == "slerp" else sources,
        base,
        shard=3000,
    )
    assert len(plan.layout.shards) > 2
    for count in (1, 2, 5):
        bench.run(plan, out=f"out{count}", threads=count)
    monkeypatch.setattr(stream_module, "CHUNK", 64)
    bench.run(plan, out="small", threads=2)
    first = bench.bytes_of("out1")
    assert first == bench.bytes_of("out2") == bench.bytes_of("out5") == bench.bytes_of("small")


def test_the_torch_path_agrees_with_the_kernels(bench):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    for method in ("linear", "ties", "dare_linear", "tsv", "iso-c", "wudi", "optmerge"):
        kernels, _ = bench.merge({"method": method}, sources, base, out=f"{method}-cpu")
        on_torch, _ = bench.merge({"method": method}, sources, base, out=f"{method}-torch", device="torch:cpu")
        for key, value in kernels.items():
            torch.testing.assert_close(on_torch[key].float(), value.float(), rtol=1e-2, atol=1e-6)


def test_an_unknown_device_is_refused(bench):
    with pytest.raises(RequestError, match="Device 'abacus' cannot be used"):
        bench.merge({"method": "linear"}, three(bench), device="abacus")


def test_one_source_is_copied_bit_for_bit(bench, dtype):
    source = bench.source("a", llama(1, dtype=dtype))
    merged, rows = bench.merge({"method": "naivemc"}, [source])
    assert {row.action for row in rows} == {"copied"}
    for key, value in loaded(source).items():
        assert_same_bits(merged[key], value)


def test_one_source_is_cast_when_the_recipe_says_so(bench):
    source = bench.source("a", llama(1))
    merged, rows = bench.merge({"method": "naivemc", "dtype": "bfloat16"}, [source])
    assert {row.action for row in rows} == {"cast"}
    for key, value in loaded(source).items():
        assert_same_bits(merged[key], value.to(torch.bfloat16))


def test_an_adapter_is_folded_exactly(bench):
    generator = torch.Generator().manual_seed(3)
    factors = {
        f"base_model.model.{QUERY.removesuffix('.weight')}.lora_{letter}.weight": torch.randn(
            *shape, generator=generator
        )
        for letter, shape in (("A", (4, HIDDEN)), ("B", (HIDDEN, 4)))
    }
    folder = bench.folder / "adapter"
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    )
    source = bench.source("a", llama(1), adapter=open_adapter(folder))
    merged, rows = bench.merge({"method": "naivemc"}, [source])
    a, b = factors.values()
    expected = loaded(source)[QUERY].double() + 2.0 * (b.double() @ a.double())
    torch.testing.assert_close(merged[QUERY].double(), expected, rtol=1e-6, atol=1e-6)
    actions = {row.name: row.action for row in rows}
    assert actions.pop(QUERY) == "folded"
    assert set(actions.values()) == {"copied"}
    assert "LoRA rank 4" in next(row.note for row in rows if row.name == QUERY)


ODD = {
    "fp8": ("F8_E4M3", (3, 5), bytes(range(15))),
    "int": ("I64", (2,), np.array([1, -1]).tobytes()),
    "flag": ("BOOL", (), b"\x01"),
    "empty": ("BF16", (0, 4), b""),
    "scalar": ("F32", (), np.float32(2.5).tobytes()),
    "four": ("F4", (3, 2), b"\x12\x34\x56"),
}


def test_odd_tensors_are_copied_untouched(bench):
    folder = bench.folder / "odd"
    source = bench.source("odd", ODD)
    jobs = [copy_job(key, e, "encoder", source="odd") for key, e in source.checkpoint.tensors.items()]
    rows = bench.run(build_plan(jobs, max_shard_size=10**6))
    written = open_checkpoint_of(bench, folder)
    for key, (dtype, shape, raw) in ODD.items():
        entry = written[key]
        assert (entry.dtype, entry.shape) == (dtype, shape)
        assert entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes] == raw
    assert {row.part for row in rows} == {"encoder:odd"}
    assert {row.name: row.digest for row in rows} == {key: digest_tensor(e) for key, e in written.items()}


def open_checkpoint_of(bench, like):
    (bench.folder / "out" / "config.json").write_text((like / "config.json").read_text())
    return open_checkpoint(bench.folder / "out").tensors


def odd_decoder(seed: int, fp8: bytes) -> dict:
    tensors = llama(seed)
    tensors["model.layers.0.scale"] = ("F32", (), np.float32(seed).tobytes())
    tensors["model.layers.0.none"] = ("F32", (0, 4), b"")
    tensors["model.layers.0.packed"] = ("F8_E4M3", (len(fp8),), fp8)
    return tensors


def test_scalars_and_empty_tensors_merge_and_equal_fp8_is_copied(bench):
    sources = [bench.source(name, odd_decoder(seed, b"abc")) for seed, name in ((1, "a"), (2, "b"))]
    merged, rows = bench.merge({"method": "linear"}, sources)
    assert merged["model.layers.0.scale"].shape == ()
    assert merged["model.layers.0.scale"].item() == 1.5
    assert merged["model.layers.0.none"].shape == (0, 4)
    assert merged["model.layers.0.packed"].view(torch.uint8).tolist() == list(b"abc")
    assert next(row for row in rows if row.name.endswith("packed")).action == "copied"


def test_different_fp8_cannot_be_merged(bench):
    sources = [bench.source(name, odd_decoder(1, raw)) for name, raw in (("a", b"abc"), ("b", b"abd"))]
    with pytest.raises(CompositionError, match=r"packed.*F8_E4M3.*'a' and 'b'"):
        bench.merge({"method": "linear"}, sources)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_source_that_is_not_finite_is_named(bench, method, bad, dtype):
    tensors = llama(2, dtype=dtype)
    kind, shape, raw = tensors[QUERY]
    itemsize = len(raw) // (HIDDEN * HIDDEN)
    from mcompose.checkpoint import encode

    broken = encode(np.array([bad], np.float32), dtype).tobytes()
    tensors[QUERY] = (kind, shape, raw[: 77 * itemsize] + broken + raw[78 * itemsize :])
    sources = [bench.source("a", llama(1, dtype=dtype)), bench.source("b", tensors)]
    base = bench.source("base", llama(0, dtype=dtype))
    with pytest.raises(NumericsError, match=f"'{QUERY}' of source 'b' is not finite at element 77"):
        bench.merge({"method": method}, sources, base, threads=2)
    assert not (bench.folder / "out").exists()


def test_a_copied_nan_is_named_too(bench):
    tensors = {"weight": ("BF16", (4,), np.array([0, 0, 0x7FC0, 0], np.uint16).tobytes())}
    source = bench.source("a", tensors)
    job = copy_job("weight", source.entry("weight"), "encoder", source="a")
    with pytest.raises(NumericsError, match="'weight' of source 'a' is not finite at element 2"):
        bench.run(build_plan([job], max_shard_size=10**6))


def test_a_nan_in_copied_rows_is_named_by_its_place_in_the_source(bench):
    tensors = {"weight": ("BF16", (4,), np.array([0, 0, 0, 0x7FC0], np.uint16).tobytes())}
    source = bench.source("a", tensors)
    job = copy_job("weight", source.entry("weight"), "encoder", source="a")
    halves = (replace(job.segments[0], stop=2), replace(job.segments[0], start=2))
    with pytest.raises(NumericsError, match="'weight' of source 'a' is not finite at element 3"):
        bench.run(build_plan([replace(job, segments=halves)], max_shard_size=10**6))


@pytest.mark.parametrize(
    ("dtype", "values", "shown"),
    [
        ("float16", [65504, 65510, 65520], "the limit of F16 is 65504"),
        ("bfloat16", [1, 3.3e38, 3.4e38], "the limit of BF16 is 3.39e38"),
    ],
)
def test_an_overflow_names_the_element_that_rounds_to_infinity(bench, dtype, values, shown):
    """The largest float16 is 65504, and all below 65520 round to it; BF16 overflows short of float32's limit."""
    source = bench.source("a", {"model.norm.weight": ("F32", (3,), np.array(values, np.float32).tobytes())})
    with pytest.raises(NumericsError, match=f"not finite at element 2 .*{shown}"):
        bench.merge({"method": "linear", "dtype": dtype}, [source])


def test_an_overflow_of_the_result_is_named(bench):
    tensors = {"model.norm.weight": ("F32", (3,), np.array([1, 60000, 70000], np.float32).tobytes())}
    sources = [bench.source("a", tensors), bench.source("b", tensors)]
    with pytest.raises(
        NumericsError, match=r"'model.norm.weight' is not finite at element 2 after linear: the limit of F16 is 65504"
    ):
        bench.merge({"method": "linear", "dtype": "float16"}, sources)
