"""A merge on a torch device (here the CPU) against the compiled kernels: every method, element type and refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from merge_bench import HIDDEN, llama, ten_rows, three
from safetensors.torch import save_file

from mcompose.checkpoint import encode, open_adapter
from mcompose.errors import CompositionError, McomposeError, NumericsError
from mcompose.merge import Contribution, Segment, TensorJob, build_plan, copy_job
from mcompose.merge.device import stream as device_module
from mcompose.merge.device.memory import Accelerator
from mcompose.methods import METHODS

QUERY = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"

SETTINGS = {
    "slerp": ({"t": 0.3},),
    "nuslerp": ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "model_stock": ({}, {"filter_wise": True}),
    "passthrough": ({"scale": 0.7},),
    "breadcrumbs": ({"density": 0.6, "gamma": 0.05}, {"density": 0.6, "rescale": "mergekit"}),
    "breadcrumbs_ties": ({"density": 0.6, "gamma": 0.05},),
    "dare_linear": ({"density": 0.5}, {"density": 0.5, "rescale": "mergekit"}),
    "dare_ties": ({"density": 0.5},),
    "della": ({"density": 0.5}, {"density": 0.5, "rescale": "mergekit"}),
    "della_linear": ({"density": 0.5},),
    "ties": ({"density": 0.4}, {"density": 0.4, "rescale": "mergekit"}, {"density": 1.0}),
    "ties-peft": ({"density": 0.4},),
    "ties-global": ({"density": 0.3},),
    "wudi": ({"lr": 1e-3}, {"solver": "closed"}),
    "optmerge": ({"lr": 1e-2},),
    "ssam": ({},),
    "swudi": ({},),
    "aswudi": ({},),
    "task_arithmetic": ({"lambda": 0.7, "normalize": True},),
    "weight-mix": ({"beta": 0.3},),
}
CASES = [(name, settings) for name in METHODS.names() for settings in SETTINGS.get(name, ({},))]

ANOTHER_ORDER = {"damc", "tsv", "iso-c", "wudi", "ssam", "swudi", "aswudi", "optmerge"}
"""Methods whose kernel and function add up in another order, or whose linear algebra is another library's."""

SUMS = {"slerp", "nuslerp", "karcher", "model_stock"}
"""Methods with coefficients from float64 sums, which may round to the neighbouring float32."""


def last_places(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many numbers of their type lie between two tensors' elements."""
    kind = {4: torch.int32, 2: torch.int16}[a.element_size()]
    low = (1 << (8 * a.element_size() - 1)) - 1
    ranks = [t.contiguous().view(kind).long() for t in (a, b)]
    first, second = (torch.where(rank < 0, -(rank & low), rank) for rank in ranks)
    return (first - second).abs()


def assert_agree(name: str, settings: dict, here: dict, there: dict) -> None:
    exact = name not in ANOTHER_ORDER | SUMS and settings.get("rescale") != "mergekit"
    for key, value in here.items():
        places = last_places(there[key], value)
        if exact:
            assert not places.any(), key
            continue
        # One float32 rounding of the largest number that took part; what cancels keeps that error.
        slack = float(value.double().abs().max()) * 2.0**-21
        apart = (there[key].double() - value.double()).abs()
        assert bool(((places <= 1) | (apart <= slack)).all()), key


def chosen(bench, name: str, dtype: str):
    method = METHODS.get(name)
    return three(bench, dtype)[: method.max_sources], bench.source("base", llama(0, dtype=dtype))


@pytest.mark.parametrize(("dtype", "out"), [("F32", None), ("BF16", "float32"), ("F32", "bfloat16"), ("F16", None)])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_every_method_agrees_with_the_kernels(bench, monkeypatch, name, settings, dtype, out):
    monkeypatch.setattr(device_module, "SLICE", 100)
    sources, base = chosen(bench, name, dtype)
    recipe = {"method": name, "parameters": settings, "seed": 7} | ({"dtype": out} if out else {})
    plan = bench.plan(recipe, sources, base)
    here = bench.run(plan, out="here")
    there = bench.run(plan, out="there", device="torch:cpu", threads=2)
    assert_agree(name, settings, bench.read("here"), bench.read("there"))
    assert [(row.name, row.inputs) for row in here] == [(row.name, row.inputs) for row in there]


def test_methods_of_mergekit_run_there_too(bench):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    plan = bench.plan({"method": "mergekit:sce"}, sources, base)
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")


@pytest.mark.parametrize("name", ["naivemc", "ties", "dare_ties", "slerp", "wudi"])
def test_slices_and_threads_leave_the_bytes_alone(bench, monkeypatch, name):
    sources, base = chosen(bench, name, "BF16")
    plan = bench.plan({"method": name, "parameters": SETTINGS.get(name, ({},))[0]}, sources, base, shard=3000)
    rows = [bench.run(plan, out=f"out{count}", device="torch:cpu", threads=count) for count in (1, 5)]
    monkeypatch.setattr(device_module, "SLICE", 64)
    rows.append(bench.run(plan, out="small", device="torch:cpu"))
    assert rows[0] == rows[1] == rows[2]
    assert bench.bytes_of("out1") == bench.bytes_of("out5") == bench.bytes_of("small")


def test_float64_is_rounded_once_on_the_way_in_and_once_on_the_way_out(bench):
    kinds = {"a": "F64", "b": "F32", "c": "BF16"}
    sources = [bench.source(name, llama(seed, dtype=kinds[name])) for seed, name in enumerate("abc", 1)]
    for name, settings in (("linear", {}), ("ties", {"density": 0.5})):
        base = bench.source("base", llama(0, dtype="F64"))
        plan = bench.plan({"method": name, "parameters": settings}, sources, base)
        assert {job.dtype for job in plan.jobs} == {"F64"}
        assert bench.run(plan, out=f"{name}-here") == bench.run(plan, out=f"{name}-there", device="torch:cpu")


def lora(bench, *, size: float = 1.0):
    generator = torch.Generator().manual_seed(3)
    shapes = {"A": (4, HIDDEN), "B": (HIDDEN, 4)}
    prefix = f"base_model.model.{QUERY.removesuffix('.weight')}.lora_"
    factors = {
        f"{prefix}{letter}.weight": size * torch.randn(*shape, generator=generator) for letter, shape in shapes.items()
    }
    folder = bench.folder / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return open_adapter(folder)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("step", [10, 100, 10**6])
def test_adapters_are_folded_on_the_host_in_float32(bench, monkeypatch, name, step):
    monkeypatch.setattr(device_module, "SLICE", step)
    tuned = bench.source("a", llama(1, dtype="BF16"), adapter=lora(bench))
    sources = [tuned, bench.source("b", llama(2, dtype="BF16"))]
    plan = bench.plan({"method": name}, sources, bench.source("base", llama(0, dtype="BF16")))
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")


def test_copies_casts_and_created_rows_come_out_as_without_a_device(bench):
    source = bench.source("a", llama(1))
    entry = source.entry("lm_head.weight")
    pair = (Contribution("a", entry), Contribution("a", entry, first_row=6))
    more = Segment(10, 14, "merged", pair, method="ties-peft", base=pair[0], weights=(0.5, 0.5))
    table = TensorJob("table", "embedding", None, "F32", (14, HIDDEN), (*ten_rows(entry), more))
    plan = build_plan([table, copy_job("whole", entry, "head", source="a")], max_shard_size=10**6)
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")
    assert bench.bytes_of("here") == bench.bytes_of("there")


def test_scalars_and_empty_tensors_merge(bench):
    def odd(seed):
        extra = {"model.layers.0.scale": ("F32", (), np.float32(seed).tobytes())}
        return llama(seed) | extra | {"model.layers.0.none": ("F32", (0, 4), b"")}

    sources = [bench.source(name, odd(seed)) for seed, name in ((1, "a"), (2, "b"))]
    for method in ("linear", "slerp"):
        recipe = {"method": method, "parameters": {"t": 0.5} if method == "slerp" else {}}
        merged, _ = bench.merge(recipe, sources, out=f"{method}-out", device="torch:cpu")
        assert merged["model.layers.0.scale"].item() == 1.5
        assert merged["model.layers.0.none"].shape == (0, 4)


def poisoned(key: str, dtype: str, places: dict[int, float]) -> dict:
    tensors = llama(2, dtype=dtype)
    kind, shape, raw = tensors[key]
    itemsize = len(raw) // int(np.prod(shape))
    for place, value in places.items():
        bits = encode(np.array([value], np.float32), dtype).tobytes()
        raw = raw[: place * itemsize] + bits + raw[(place + 1) * itemsize :]
    return tensors | {key: (kind, shape, raw)}


def refusals(bench, plan) -> list[str]:
    said = []
    for device in ("cpu", "torch:cpu"):
        with pytest.raises((NumericsError, CompositionError)) as caught:
            bench.run(plan, out=f"out-{device[0]}", device=device, threads=1)
        said.append(str(caught.value))
        assert not (bench.folder / f"out-{device[0]}").exists()
    return said


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp", "model_stock", "tsv"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_source_that_is_not_finite_is_named_in_the_same_words(bench, monkeypatch, name, bad, dtype):
    monkeypatch.setattr(device_module, "SLICE", 100)
    monkeypatch.setattr(device_module, "CHUNK", 50)
    tensors = poisoned(DOWN, dtype, {777: bad, 900: np.nan})
    sources = [bench.source("a", llama(1, dtype=dtype)), bench.source("b", tensors)]
    settings = {"parameters": {"t": 0.3}} if name == "slerp" else {}
    plan = bench.plan({"method": name, **settings}, sources, bench.source("base", llama(0, dtype=dtype)))
    here, there = refusals(bench, plan)
    assert here == there
    assert f"'{DOWN}' of source 'b' is not finite at element 777" in there


@pytest.mark.parametrize("name", ["linear", "nuslerp"])
def test_an_overflow_of_the_result_is_named_in_the_same_words(bench, monkeypatch, name):
    monkeypatch.setattr(device_module, "SLICE", 2)
    tensors = {"model.norm.weight": ("F32", (4,), np.array([1, 60000, 65519, 70000], np.float32).tobytes())}
    sources = [bench.source("a", tensors), bench.source("b", tensors)]
    plan = bench.plan({"method": name, "dtype": "float16"}, sources)
    here, there = refusals(bench, plan)
    assert here == there
    assert f"'model.norm.weight' is not finite at element 3 after {name}: the limit of F16 is 65504" in there


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_an_adapter_that_overflows_is_blamed_on_every_device(bench):
    tuned = bench.source("a", llama(1), adapter=lora(bench, size=1e20))
    plan = bench.plan({"method": "linear"}, [tuned, bench.source("b", llama(2))])
    here, there = refusals(bench, plan)
    assert here == there
    assert there.startswith(f"Tensor '{QUERY}' of source 'a' is not finite at element")
    assert "after its adapter is folded" in there


def test_numbers_that_are_not_finite_pass_when_nobody_checks(bench):
    tensors = poisoned(DOWN, "F32", {777: np.inf})
    plan = bench.plan({"method": "linear"}, [bench.source("a", llama(1)), bench.source("b", tensors)])
    here = bench.run(plan, out="here", check_finite=False)
    assert here == bench.run(plan, out="there", device="torch:cpu", check_finite=False)
    assert bench.read("there")[DOWN].view(-1)[777].item() == np.inf


def limited(monkeypatch, *, memory: int | None = None, has_doubles: bool = True) -> list[tuple[str, int]]:
    """Runs on a device with such limits; returns the method and the elements of every call on it."""
    calls: list[tuple[str, int]] = []
    call_whole = device_module.call_whole

    def noted(method, task, sources, base):
        calls.append((method.name, sources[0].numel()))
        return call_whole(method, task, sources, base)

    def of(device):
        accelerator = Accelerator(device, memory=memory)
        accelerator.has_doubles = has_doubles
        return accelerator

    monkeypatch.setattr(device_module, "call_whole", noted)
    monkeypatch.setattr(device_module.Accelerator, "of", of)
    return calls


@pytest.mark.parametrize("name", ["linear", "ties", "slerp", "tsv"])
def test_a_device_without_float64_gets_the_methods_in_slices_only(bench, monkeypatch, name):
    calls = limited(monkeypatch, has_doubles=False)
    sources, base = chosen(bench, name, "BF16")
    plan = bench.plan({"method": name, "parameters": SETTINGS.get(name, ({},))[0]}, sources, base)
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")
    assert {method for method, _ in calls} == ({"linear"} if name == "linear" else set())


def test_a_device_without_float64_gets_no_float64_tensors(bench, monkeypatch):
    calls = limited(monkeypatch, has_doubles=False)
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2, dtype="F64"))]
    plan = bench.plan({"method": "linear"}, sources)
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")
    assert calls == []


def test_tensors_too_large_for_the_device_are_merged_by_the_kernels(bench, monkeypatch):
    sources, base = chosen(bench, "ties", "BF16")
    calls = limited(monkeypatch, memory=2 * 10**5)
    plan = bench.plan({"method": "ties", "parameters": {"density": 0.4}}, sources, base)
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")
    assert sorted({elements for _, elements in calls}) == [HIDDEN, HIDDEN * HIDDEN, 40 * HIDDEN]
    assert max(job.rows * job.row_elements for job in plan.jobs) == 2 * HIDDEN * HIDDEN


def test_slices_need_no_room_for_the_whole_tensor(bench, monkeypatch):
    calls = limited(monkeypatch, memory=1000)
    monkeypatch.setattr(device_module, "SLICE", 100)
    plan = bench.plan({"method": "linear"}, three(bench))
    assert bench.run(plan, out="here") == bench.run(plan, out="there", device="torch:cpu")
    assert sum(elements for _, elements in calls) == sum(job.rows * job.row_elements for job in plan.jobs)
    assert max(elements for _, elements in calls) == 100


def test_a_device_without_memory_left_is_a_sentence(bench, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(device_module, "call_whole", full)
    with pytest.raises(
        McomposeError, match=r"Device 'cpu' does not have enough free memory for '(model\.|lm_head)"
    ) as caught:
        bench.merge({"method": "linear"}, three(bench), device="torch:cpu")
    assert caught.value.exit_code == 1
    assert "--device cpu" in str(caught.value.hint)
