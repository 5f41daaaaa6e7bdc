"""What every registered merge method keeps to, whatever its maths."""

from __future__ import annotations

import threading
from math import prod

import numpy as np
import pytest
import torch

from mcompose.errors import NumericsError, RequestError
from mcompose.merge.program import Whole
from mcompose.methods import METHODS, TensorTask, merge_tensors, merge_whole

SETTINGS = {
    "naivemc": [{}],
    "linear": [{}, {"normalize": False}],
    "weight-mix": [{}, {"beta": 0.8}],
    "task_arithmetic": [{}, {"lambda": 0.7, "normalize": True}],
    "damc": [{}, {"modality_weights": 0.5}],
    "slerp": [{"t": 0.3}, {"t": 0.0}, {"t": 1.0}],
    "nuslerp": [
        {},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "model_stock": [{}, {"filter_wise": True}],
    "karcher": [{}, {"max_iter": 3}],
    "passthrough": [{}, {"scale": 0.5}],
    "ties": [
        {},
        {"density": 0.2},
        {"density": 0.3, "rescale": True, "normalize": False, "lambda": 1.1},
        {"density": 0.0},
    ],
    "ties-peft": [{}, {"density": 0.2}, {"density": 0.0}],
    "ties-global": [{}, {"density": 0.5, "lambda": 0.9}, {"density": 1.0}, {"density": 0.0}],
    "dare_linear": [{}, {"density": 0.4}, {"density": 0.4, "rescale": "mergekit"}, {"density": 0.0}],
    "dare_ties": [
        {"density": 0.4},
        {"density": 0.4, "rescale": True, "normalize": True},
        {"density": 0.4, "rescale": "none"},
    ],
    "breadcrumbs": [
        {},
        {"density": 0.3, "gamma": 0.1},
        {"density": 0.3, "rescale": True},
        {"density": 0.0},
        {"density": 0.3, "gamma": 0.1, "within": "row"},
    ],
    "breadcrumbs_ties": [
        {"density": 0.5, "gamma": 0.2, "normalize": True},
        {"density": 0.5, "within": "row", "rescale": True},
    ],
    "della": [{}, {"density": 0.5, "epsilon": 0.2}, {"density": 0.5, "rescale": "mergekit"}, {"density": 0.0}],
    "della_linear": [{"density": 0.6, "epsilon": 0.1, "rescale": "none"}, {"density": 0.6, "lambda": 0.5}],
    "tsv": [{}, {"lambda": 0.6, "share": 0.1}],
    "iso-c": [{}, {"lambda": 0.6}],
    "wudi": [{}, {"solver": "closed"}, {"lambda": 0.6, "steps": 20, "lr": 1e-3}],
    "ssam": [{}, {"lambda": 0.6, "share": 0.5}],
    "swudi": [{}, {"lambda": 0.6, "time": 1300.0, "keep": 0.85, "start": "mean"}],
    "aswudi": [{}, {"rank": "gavish_donoho", "lambda": 0.6}],
    "optmerge": [{}, {"against": "source", "start": "sum", "lr": 5e-2, "share": 0.2, "lambda": 0.6}],
}
"""Every method has a row: a method without one fails here, when the tests are collected."""

assert set(SETTINGS) == set(METHODS.names()), set(SETTINGS) ^ set(METHODS.names())

CASES = [(name, parameters) for name, rows in SETTINGS.items() for parameters in rows]
each_case = pytest.mark.parametrize(("name", "parameters"), CASES, ids=lambda value: str(value).replace(" ", ""))
each_method = pytest.mark.parametrize("name", METHODS.names())

SHAPES = [(), (1,), (7,), (40, 33), (3, 4, 5), (0,), (0, 4), (4, 0)]


def count_of(name):
    method = METHODS.get(name)
    return min(3, method.max_sources or 3)


def make_tensors(name, shape, *, seed=0, spread=0.01):
    """Sources that differ from their base by little, as fine-tunes do."""
    generator = np.random.default_rng(seed)
    base = np.asarray(generator.standard_normal(shape), np.float32)
    deltas = [generator.standard_normal(shape) * spread for _ in range(count_of(name))]
    return [np.asarray(base + delta, np.float32) for delta in deltas], base


def make_task(name, shape, parameters, *, weights=(0.5, 0.3, 0.2), with_base=True, seed=7):
    method = METHODS.get(name)
    count = count_of(name)
    return TensorTask(
        name="model.layers.0.weight",
        shape=shape,
        sources=("sees", "hears", "reads")[:count],
        weights=tuple(weights[:count]),
        parameters=parameters,
        seed=seed,
        has_base=method.base == "required" or (method.base == "optional" and with_base),
    )


def run_program(method, task, sources, base, *, chunk):
    """What an engine does: measuring passes in element order, then the pass that writes."""
    program = Whole(method, task) if method.program is None else method.program(task)
    size = prod(task.shape)
    step = size if program.chunk_multiple == 0 else max(1, chunk // program.chunk_multiple) * program.chunk_multiple
    flat = [np.ascontiguousarray(source).reshape(-1) for source in sources]
    origin = None if base is None else np.ascontiguousarray(base).reshape(-1)
    out = np.full(size, np.nan, np.float32)
    for index in range(program.passes + 1):
        for start in range(0, size, max(1, step)):
            cut = slice(start, start + step)
            arguments = (start, [source[cut] for source in flat], None if origin is None else origin[cut])
            if index < program.passes:
                program.measure(index, *arguments)
            else:
                program.combine(*arguments, out[cut])
    return out.reshape(task.shape)


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


def assert_close(first, second, scale):
    """Equal within four units in the last place of the largest number that took part."""
    assert first.shape == second.shape
    limit = 4 * np.spacing(np.float32(max(scale, 1e-30)))
    assert first.size == 0 or np.abs(first - second).max() <= limit


@each_case
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_function_and_program_agree_for_every_cut(name, parameters, shape):
    method, task = METHODS.get(name), make_task(name, shape, parameters)
    sources, base = make_tensors(name, shape)
    origin = base if task.has_base else None
    whole = merge_whole(method, task, sources, origin)
    cuts = [run_program(method, task, sources, origin, chunk=chunk) for chunk in (1, 7, 65536, 10**9)]
    for cut in cuts:
        assert np.array_equal(bits(cut), bits(cuts[0])), "the cut into chunks changed the bytes"
    assert whole.shape == shape
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    assert np.isfinite(cuts[0]).all()
    assert_close(whole, cuts[0], float(np.abs(base).max(initial=0)))


EXACT = (
    "naivemc", "linear", "weight-mix", "task_arithmetic", "passthrough", "ties", "ties-peft", "ties-global",
    "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"), [case for case in CASES if case[0] in EXACT and "rescale" not in case[1]], ids=str
)
def test_function_and_program_are_equal_bit_for_bit(name, parameters):
    # No measured number takes part in these, so nothing but the order of the sums could differ, and it does not.
    shape = (40, 33)
    method, task = METHODS.get(name), make_task(name, shape, parameters)
    sources, base = make_tensors(name, shape)
    whole = merge_whole(method, task, sources, base if task.has_base else None)
    program = run_program(method, task, sources, base if task.has_base else None, chunk=10**9)
    np.testing.assert_array_equal(whole, program)


@each_case
def test_large_tensors_give_the_same_bytes_for_every_cut_and_run(name, parameters):
    # More than one block of the float64 sums and more than one piece of the cache; chunks that fit neither.
    shape = (300, 257)
    method, task = METHODS.get(name), make_task(name, shape, parameters)
    sources, base = make_tensors(name, shape)
    origin = base if task.has_base else None
    results = [run_program(method, task, sources, origin, chunk=chunk) for chunk in (30_001, 65_536, 10**9, 10**9)]
    assert all(np.array_equal(bits(result), bits(results[0])) for result in results)
    assert_close(merge_whole(method, task, sources, origin), results[0], float(np.abs(base).max()))


@each_case
def test_equal_sources_give_themselves(name, parameters):
    """Sources that equal each other and the base have one merge, up to a rescaling that the recipe asked for."""
    if parameters.get("scale", 1) != 1:
        pytest.skip("a scaled copy is not the source")
    weights = (0.5, 0.3, 0.2) if count_of(name) == 3 else (0.6, 0.4)
    for shape in SHAPES:
        task = make_task(name, shape, parameters, weights=weights)
        _, base = make_tensors(name, shape)
        merged = merge_whole(METHODS.get(name), task, [base] * count_of(name), base if task.has_base else None)
        assert_close(merged, base, float(np.abs(base).max(initial=0)))


@each_case
def test_order_of_sources_does_not_matter_where_the_method_says_so(name, parameters):
    method = METHODS.get(name)
    if not method.symmetric:
        pytest.skip("declared to depend on the order")
    task = make_task(name, (40, 33), parameters)
    sources, base = make_tensors(name, (40, 33))
    origin = base if task.has_base else None
    backwards = TensorTask(
        name=task.name,
        shape=task.shape,
        sources=task.sources[::-1],
        weights=task.weights[::-1],
        parameters=task.parameters,
        seed=task.seed,
        has_base=task.has_base,
    )
    first = merge_whole(method, task, sources, origin)
    second = merge_whole(method, backwards, sources[::-1], origin)
    # A sum of another order may round a vote to zero or not: such elements are counted, and must be few.
    limit = 4 * np.spacing(np.float32(np.abs(base).max()))
    assert (np.abs(first - second) > limit).mean() < 0.002


@each_case
def test_numpy_and_torch_give_the_same(name, parameters):
    task = make_task(name, (40, 33), parameters)
    sources, base = make_tensors(name, (40, 33))
    origin = base if task.has_base else None
    ours = merge_whole(METHODS.get(name), task, sources, origin)
    theirs = merge_whole(
        METHODS.get(name),
        task,
        [torch.from_numpy(source) for source in sources],
        None if origin is None else torch.from_numpy(origin),
    )
    assert isinstance(theirs, torch.Tensor)
    assert theirs.dtype == torch.float32
    assert_close(theirs.numpy(), ours, float(np.abs(base).max()))


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_one_call_form_keeps_kind_shape_and_element_type(name, dtype):
    parameters = SETTINGS[name][0]
    for shape in SHAPES:
        sources, base = make_tensors(name, shape)
        origin = torch.from_numpy(base).to(dtype) if METHODS.get(name).base == "required" else None
        merged = merge_tensors(
            name, [torch.from_numpy(source).to(dtype) for source in sources], base=origin, **parameters
        )
        assert isinstance(merged, torch.Tensor)
        assert merged.dtype == dtype
        assert tuple(merged.shape) == shape
        assert torch.isfinite(merged).all()


@each_case
def test_nan_in_a_source_reaches_the_result(name, parameters):
    """What is dropped or outvoted must not hide a broken source: the engine looks at the result."""
    task = make_task(name, (40, 33), parameters)
    sources, base = make_tensors(name, (40, 33))
    sources[-1][5, 6] = np.nan
    origin = base if task.has_base else None
    with np.errstate(invalid="ignore"):
        result = run_program(METHODS.get(name), task, sources, origin, chunk=500)
    assert np.isnan(result[5, 6])


@each_method
def test_threads_with_their_own_programs_give_the_same_bytes(name):
    parameters = SETTINGS[name][-1]
    method, task = METHODS.get(name), make_task(name, (64, 70), parameters)
    sources, base = make_tensors(name, (64, 70))
    origin = base if task.has_base else None
    results = [None] * 4

    def work(index):
        results[index] = run_program(method, task, sources, origin, chunk=70 * (index + 1))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(bits(result), bits(results[0])) for result in results)


@each_method
def test_one_source_gives_itself_where_one_is_allowed(name):
    method = METHODS.get(name)
    if method.min_sources > 1:
        pytest.skip("takes more than one source")
    sources, base = make_tensors(name, (12, 5))
    # No density: everything is kept; the weight of a single source is one.
    parameters = {"density": 1.0} if any(parameter.name == "density" for parameter in method.parameters) else {}
    merged = merge_tensors(name, sources[:1], base=base if method.base == "required" else None, **parameters)
    if method.space == "weights":
        assert_close(merged, sources[0], float(np.abs(base).max()))
        assert name == "karcher" or np.array_equal(merged, sources[0])
    else:
        assert_close(merged, sources[0], float(np.abs(base).max()))


@each_method
def test_settings_that_do_not_fit_are_refused_by_name(name):
    method = METHODS.get(name)
    sources, base = make_tensors(name, (3, 2))
    origin = base if method.base == "required" else None
    good = SETTINGS[name][0]
    with pytest.raises(RequestError, match=f"'{name}' has no parameter 'densty'"):
        merge_tensors(name, sources, base=origin, **good, densty=0.5)
    for parameter in method.parameters:
        wrong = {**good, parameter.name: "nonsense"}
        with pytest.raises(RequestError, match=parameter.name):
            merge_tensors(name, sources, base=origin, **wrong)
        if parameter.high is not None:
            with pytest.raises(RequestError, match=r"; it must be in \["):
                merge_tensors(name, sources, base=origin, **{**good, parameter.name: parameter.high + 1})
    if method.base == "required":
        with pytest.raises(RequestError, match="needs a base"):
            merge_tensors(name, sources, **good)
    with pytest.raises(NumericsError, match="shape"):
        merge_tensors(name, [*sources[:-1], np.zeros(5, np.float32)], base=np.zeros(7, np.float32), **good)


@each_method
def test_method_says_where_it_comes_from(name):
    method = METHODS.get(name)
    text = method.function.__doc__
    assert "Paper:" in text
    assert "Differs:" in text
    assert method.paper == "" or method.paper.removeprefix("arXiv:") in text
    assert method.title
