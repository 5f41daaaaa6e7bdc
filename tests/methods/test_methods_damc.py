"""DAMC's rule for the text group: worked out by hand, exact where it must be, and against plain averages."""

import numpy as np
import pytest

from mcompose.methods import METHODS, TensorTask, merge_tensors


def f32(*numbers):
    return np.array(numbers, np.float32)


def run(sources, base, weights, dtype=np.float32, **parameters):
    """The chunked form, as the engine calls it."""
    names = tuple("abcd"[: len(sources)])
    task = TensorTask("x", sources[0].shape, names, weights, parameters, has_base=True)
    program = METHODS.get("damc").program(task)
    out = np.empty(sources[0].size, dtype)
    assert program.passes == 0
    assert program.combine(0, [source.reshape(-1) for source in sources], base.reshape(-1), out) == 0
    return out


def test_changes_are_added_each_times_its_coefficient():
    # base 10; changes 2 and -4; 10 + 0.5 * 2 + 0.25 * -4 = 10
    sources, base = [f32(12), f32(6)], f32(10)
    np.testing.assert_array_equal(merge_tensors("damc", sources, base=base, weights=[0.5, 0.25]), f32(10))
    np.testing.assert_array_equal(run(sources, base, (0.5, 0.25)), f32(10))
    # 1/M each: 10 + (2 - 4) / 2 = 9
    np.testing.assert_array_equal(merge_tensors("damc", sources, base=base), f32(9))


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)])
def test_coefficients_that_add_up_to_one_average_to_the_bit(weights):
    random = np.random.default_rng(0)
    base = random.standard_normal(4001).astype(np.float32)
    sources = [(base + 0.01 * random.standard_normal(4001)).astype(np.float32) for _ in weights]
    average = merge_tensors("naivemc", sources, weights=weights)
    np.testing.assert_array_equal(run(sources, base, weights), average)
    exact = sum(weight * source.astype(np.float64) for weight, source in zip(weights, sources, strict=True))
    np.testing.assert_allclose(average, exact, rtol=0, atol=1e-6)


def test_one_source_at_one_is_that_source_to_the_bit():
    random = np.random.default_rng(1)
    base, source = random.standard_normal((2, 999)).astype(np.float32)
    source *= 1e-4  # where the base is much larger, its difference loses the source's last bits
    assert np.any(base + (source - base) != source)
    np.testing.assert_array_equal(run([source], base, (1.0,)), source)


def test_coefficients_of_any_sum_are_task_arithmetic():
    random = np.random.default_rng(2)
    base = random.standard_normal(2000).astype(np.float32)
    sources = [(base + 0.1 * random.standard_normal(2000)).astype(np.float32) for _ in range(3)]
    for weights in ((1.0, 1.0, 1.0), (0.333, 0.333, 0.333), (0.9, 0.0, -0.2)):
        wanted = base + sum(w * (s.astype(np.float64) - base) for w, s in zip(weights, sources, strict=True))
        np.testing.assert_allclose(run(sources, base, weights), wanted, rtol=0, atol=2e-6)
        theirs = merge_tensors("task_arithmetic", sources, base=base, weights=weights)
        np.testing.assert_allclose(merge_tensors("damc", sources, base=base, weights=weights), theirs, rtol=1e-6)


def test_the_groups_coefficient_is_not_the_texts():
    sources, base = [f32(12), f32(6)], f32(10)
    for share in (0.0, 5.0, (1.0, 0.5)):
        np.testing.assert_array_equal(run(sources, base, (0.5, 0.5), modality_weights=share), f32(9))
