"""mergekit's methods through the bridge, against mergekit called by hand."""

from __future__ import annotations

import pytest
import torch
from merge_bench import llama

from mcompose.errors import RecipeError, RequestError, UnknownNameError
from mcompose.merge import catalogue, find_method

CASES = {
    "mergekit:sce": ({"select_topk": 0.5}, {}),
    "mergekit:ram": ({}, {}),
    "mergekit:ramplus_tl": ({"r": 0.2}, {}),
    "mergekit:multislerp": ({}, {"weight": [0.5, 0.5]}),
    "mergekit:ties": ({"density": 0.3, "lambda": 0.7}, {"weight": [0.5, 0.5]}),
}


def loaded(source):
    from safetensors.torch import load_file

    return load_file(source.checkpoint.folder / "model.safetensors")


@pytest.mark.parametrize("method", CASES)
def test_a_bridged_method_equals_mergekit(bench, method):
    from mergekit.merge_methods import merge_tensors

    parameters, weights = CASES[method]
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    base = bench.source("base", llama(0))
    merged, rows = bench.merge({"method": method, "parameters": parameters}, sources, base, threads=2)
    origin, first, second = (loaded(source) for source in (base, *sources))
    for key, value in merged.items():
        expected = merge_tensors(
            [origin[key], first[key], second[key]],
            method.removeprefix("mergekit:"),
            parameters=parameters | weights,
            base_index=0,
            dtype=torch.float32,
        )
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)
    assert rows[0].method == method


@pytest.mark.parametrize("method", ["mergekit:nearswap", "mergekit:arcee_fusion"])
def test_two_model_methods_take_the_base_and_one_source(bench, method):
    from mergekit.merge_methods import merge_tensors

    parameters = {"t": 0.001} if method.endswith("nearswap") else {}
    source, base = bench.source("a", llama(1)), bench.source("base", llama(0))
    merged, _ = bench.merge({"method": method, "parameters": parameters}, [source], base)
    origin, tuned = loaded(base), loaded(source)
    for key, value in merged.items():
        expected = merge_tensors(
            [origin[key], tuned[key]], method.removeprefix("mergekit:"), parameters=parameters, base_index=0
        )
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)


def test_random_methods_do_not_depend_on_the_schedule_or_on_torchs_generator(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    plan = bench.plan(
        {"method": "mergekit:dare_ties", "parameters": {"density": 0.5}, "seed": 4},
        sources,
        bench.source("base", llama(0)),
    )
    state = torch.random.get_rng_state()
    bench.run(plan, out="one", threads=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    bench.run(plan, out="three", threads=3)
    assert bench.bytes_of("one") == bench.bytes_of("three")
    other = bench.plan(
        {"method": "mergekit:dare_ties", "parameters": {"density": 0.5}, "seed": 5},
        sources,
        bench.source("base", llama(0)),
    )
    bench.run(other, out="other")
    assert bench.bytes_of("other") != bench.bytes_of("one")


def test_torchs_thread_count_is_left_as_it_was(bench):
    before = torch.get_num_threads()
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    bench.merge({"method": "mergekit:sce"}, sources, bench.source("base", llama(0)), threads=3)
    assert torch.get_num_threads() == before


def test_the_catalogue_has_every_method_of_mergekit_once():
    from mergekit.merge_methods import registered_methods

    methods = registered_methods()
    theirs = set(methods) if isinstance(methods, dict) else {method.spec.name for method in methods}
    ours = catalogue(with_mergekit=True)
    assert len(ours) == len(set(ours))
    assert theirs <= {name.removeprefix("mergekit:").replace("-", "_") for name in ours}
    assert not any(name.startswith("mergekit:") for name in catalogue())


def test_what_mergekit_says_of_a_method_is_taken_over():
    sce = find_method("mergekit:sce")
    assert (sce.base, sce.min_sources, sce.max_sources, sce.paper) == ("required", 1, None, "arXiv:2408.07990")
    assert [(p.name, p.default, p.kind) for p in sce.parameters] == [
        ("int8_mask", False, bool),
        ("select_topk", 1.0, float),
    ]
    assert find_method("mergekit:nearswap").max_sources == 1
    assert find_method("mergekit:dare_ties").random
    assert not find_method("mergekit:ties").random


def test_wrong_requests_are_refused(bench):
    sources = [bench.source("a", llama(1)), bench.source("b", llama(2))]
    with pytest.raises(UnknownNameError, match=r"mergekit does not have a method 'scee'. Did you mean 'sce'"):
        bench.plan({"method": "mergekit:scee"}, sources)
    with pytest.raises(RecipeError, match=r"but the base of .* is missing"):
        bench.plan({"method": "mergekit:sce"}, sources)
    with pytest.raises(RequestError, match="needs the parameter 't'"):
        bench.plan({"method": "mergekit:nearswap"}, sources[:1], bench.source("base", llama(0)))
