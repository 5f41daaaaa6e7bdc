"""One case a method, small enough to work out on paper; the working stands beside it."""

from __future__ import annotations

from math import cos, pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from mcompose.errors import NumericsError, RequestError
from mcompose.methods import METHODS, merge_tensors
from mcompose.methods.core.randomness import address, uniforms


def f32(*numbers):
    return np.array(numbers, np.float32)


ZERO4 = f32(0, 0, 0, 0)


def test_naivemc_averages():
    # (1 + 3) / 2 = 2; (2 - 6) / 2 = -2
    np.testing.assert_array_equal(merge_tensors("naivemc", [f32(1, 2), f32(3, -6)]), f32(2, -2))


def test_naivemc_takes_weights_as_given():
    # 1 * 1 + 0.5 * 4 = 3, not divided by 1.5
    np.testing.assert_array_equal(merge_tensors("naivemc", [f32(1), f32(4)], weights=[1, 0.5]), f32(3))


def test_linear_divides_by_the_weights():
    # (3 * 0 + 1 * 4) / 4 = 1; (3 * 2 + 1 * 4) / 4 = 2.5; without normalising four times that
    sources = [f32(0, 2), f32(4, 4)]
    np.testing.assert_array_equal(merge_tensors("linear", sources, weights=[3, 1]), f32(1, 2.5))
    np.testing.assert_array_equal(merge_tensors("linear", sources, weights=[3, 1], normalize=False), f32(4, 10))


def test_linear_refuses_weights_that_sum_to_zero():
    with pytest.raises(NumericsError, match="sum to zero"):
        merge_tensors("linear", [f32(1), f32(2)], weights=[1, -1])
    np.testing.assert_array_equal(merge_tensors("linear", [f32(1), f32(2)], weights=[1, -1], normalize=False), f32(-1))


def test_weight_mix_gives_beta_to_the_first():
    # 0.25 * 8 + 0.75 * 4 = 5; default (8 + 4) / 2 = 6
    np.testing.assert_array_equal(merge_tensors("weight-mix", [f32(8), f32(4)], beta=0.25), f32(5))
    np.testing.assert_array_equal(merge_tensors("weight-mix", [f32(8), f32(4)]), f32(6))


def test_task_arithmetic_adds_deltas_to_the_base():
    # base 10; deltas 2 and -4; 10 + 0.5 * (1 * 2 + 2 * -4) = 7; normalised: 10 + 0.5 * -6 / 3 = 9
    sources, base = [f32(12), f32(6)], f32(10)
    settings = {"base": base, "weights": [1, 2], "lambda": 0.5}
    np.testing.assert_array_equal(merge_tensors("task_arithmetic", sources, **settings), f32(7))
    np.testing.assert_array_equal(merge_tensors("task_arithmetic", sources, normalize=True, **settings), f32(9))


def test_slerp_turns_at_constant_speed():
    # (2, 0) to (0, 2): t = 1/3 is 30 degrees: 2 * (sin 60, sin 30) = (sqrt 3, 1)
    got = merge_tensors("slerp", [f32(2, 0), f32(0, 2)], t=1 / 3)
    np.testing.assert_allclose(got, [sqrt(3), 1], rtol=1e-6)


def test_slerp_runs_from_the_first_to_the_second():
    first, second = f32(1, 2, 3), f32(-4, 5, 1)
    np.testing.assert_allclose(merge_tensors("slerp", [first, second], t=0), first, atol=1e-6)
    np.testing.assert_allclose(merge_tensors("slerp", [first, second], t=1), second, atol=1e-6)


def test_slerp_of_parallel_vectors_is_the_line():
    # (1, 1) and (3, 3): 0.75 * 1 + 0.25 * 3 = 1.5
    np.testing.assert_array_equal(merge_tensors("slerp", [f32(1, 1), f32(3, 3)], t=0.25), f32(1.5, 1.5))


def test_nuslerp_takes_its_place_from_the_weights():
    # weights 2 : 1 are t = 1/3, the slerp above
    got = merge_tensors("nuslerp", [f32(2, 0), f32(0, 2)], weights=[2, 1])
    np.testing.assert_allclose(got, [sqrt(3), 1], rtol=1e-6)


def test_nuslerp_by_rows_and_columns():
    # Rows: (2, 0) to (0, 2) turns half-way to (sqrt 2, sqrt 2); (1, 1) to (3, 3) is the line's middle (2, 2).
    first, second = np.float32([[2, 0], [1, 1]]), np.float32([[0, 2], [3, 3]])
    rows = merge_tensors("nuslerp", [first, second], weights=[1, 1], nuslerp_flatten=False)
    np.testing.assert_allclose(rows, [[sqrt(2), sqrt(2)], [2, 2]], rtol=1e-6)
    columns = merge_tensors(
        "nuslerp", [first.T.copy(), second.T.copy()], weights=[1, 1], nuslerp_flatten=False, nuslerp_row_wise=True
    )
    np.testing.assert_allclose(columns, rows.T, rtol=1e-6)


def test_nuslerp_with_a_base_turns_the_deltas():
    # base (1, 1); deltas (2, 0) and (0, 2); half-way: (1, 1) + (sqrt 2, sqrt 2)
    got = merge_tensors("nuslerp", [f32(3, 1), f32(1, 3)], base=f32(1, 1), weights=[1, 1])
    np.testing.assert_allclose(got, [1 + sqrt(2)] * 2, rtol=1e-6)


def test_model_stock_trusts_the_average_by_the_angle():
    # deltas (1, 0) and (cos 60, sin 60): cos = 1/2, t = 2 * 0.5 / (1 + 0.5) = 2/3, mean (0.75, sqrt(3) / 4)
    base = f32(10, 10)
    deltas = [f32(1, 0), f32(cos(pi / 3), sin(pi / 3))]
    got = merge_tensors("model_stock", [base + delta for delta in deltas], base=base)
    np.testing.assert_allclose(got, [10 + 0.5, 10 + sqrt(3) / 6], rtol=1e-6)


def test_model_stock_stays_at_the_base_where_models_oppose():
    # cos = -1: 1 + (2 - 1) * -1 = 0, no estimate
    base = f32(10, 10)
    got = merge_tensors("model_stock", [base + f32(1, 0), base - f32(1, 0)], base=base)
    np.testing.assert_array_equal(got, base)


def test_model_stock_filter_by_filter():
    # First row as above (t = 2/3); second row: equal deltas, cos = 1, t = 1.
    base = np.zeros((2, 2), np.float32)
    first = np.float32([[1, 0], [3, 4]])
    second = np.float32([[cos(pi / 3), sin(pi / 3)], [3, 4]])
    got = merge_tensors("model_stock", [first, second], base=base, filter_wise=True)
    np.testing.assert_allclose(got, [[0.5, sqrt(3) / 6], [3, 4]], rtol=1e-6)


def test_karcher_is_the_middle_of_the_arc_at_the_mean_length():
    # directions (1, 0) and (0, 1), lengths 1 and 3: middle (1, 1) / sqrt 2, length 2: (sqrt 2, sqrt 2)
    got = merge_tensors("karcher", [f32(1, 0), f32(0, 3)])
    np.testing.assert_allclose(got, [sqrt(2), sqrt(2)], rtol=1e-6)


def test_karcher_with_weights_divides_the_arc():
    # weights 2 : 1 on a right angle: 30 degrees from the first; length (2 * 1 + 1 * 1) / 3 = 1
    got = merge_tensors("karcher", [f32(1, 0), f32(0, 1)], weights=[2, 1], max_iter=100, tol=1e-12)
    np.testing.assert_allclose(got, [cos(pi / 6), sin(pi / 6)], rtol=1e-6)


def test_karcher_of_opposites_keeps_the_direction_of_the_heavier():
    # 0.7 x - 0.3 x points along x, at the mean length: (1 + 1) / 2, then (1 + 1 + 2) / 3 of x's
    x = f32(3, 4)
    np.testing.assert_allclose(merge_tensors("karcher", [x, -x], weights=[0.7, 0.3]), x, rtol=1e-6)
    np.testing.assert_allclose(merge_tensors("karcher", [x, -x, 2 * x]), 4 / 3 * x, rtol=1e-6)


def test_karcher_of_opposites_is_finite():
    assert np.isfinite(merge_tensors("karcher", [f32(1, 2), f32(-1, -2)])).all()


def test_passthrough_scales():
    np.testing.assert_array_equal(merge_tensors("passthrough", [f32(1, -2)], scale=3), f32(3, -6))


def test_ties_trims_elects_and_averages():
    # density 0.5 of 4 keeps two each: 4 and -3 of the first, -5 and 2 of the second
    # sums: -1 elects minus, -3 minus, 2 plus, the last is 0; means of those that agree: -5, -3, 2, 0
    a, b = f32(4, -3, 1, 0.5), f32(-5, 1, 2, 0.5)
    got = merge_tensors("ties", [a + 10, b + 10], base=ZERO4 + 10, weights=[1, 1], density=0.5)
    np.testing.assert_array_equal(got, f32(5, 7, 12, 10))


def test_ties_weights_vote_and_divide():
    # weights 3 and 1: votes 3 * 1 = 3 against 1 * -2: plus wins; mean 3 * 1 / 3 = 1; without normalising 3
    sources, base = [f32(1), f32(-2)], f32(0)
    assert merge_tensors("ties", sources, base=base, weights=[3, 1]) == 1
    assert merge_tensors("ties", sources, base=base, weights=[3, 1], normalize=False) == 3
    # PEFT votes without weights: 1 - 2 = -1, minus wins; -2 * 1 / 1
    assert merge_tensors("ties-peft", sources, base=base, weights=[3, 1]) == -2


def test_ties_keeps_equal_magnitudes_in_element_order():
    # density 0.5 of 4 keeps two; three are equal: the first and the second of them stay
    got = merge_tensors("ties", [f32(1, 0.5, -1, 1)], base=ZERO4, weights=[1], density=0.5)
    np.testing.assert_array_equal(got, f32(1, 0, -1, 0))


def test_ties_keeps_one_element_at_least_and_peft_may_keep_none():
    # int(0.1 * 4) = 0
    assert merge_tensors("ties", [f32(1, 3, 2, 0)], base=ZERO4, density=0.1).tolist() == [0, 3, 0, 0]
    assert merge_tensors("ties-peft", [f32(1, 3, 2, 0)], base=ZERO4, density=0.1).tolist() == [0, 0, 0, 0]


def test_ties_can_restore_the_norm():
    # kept 4 of |4| + |3| + |2| + |1| = 10: 4 * 10 / 4 = 10
    got = merge_tensors("ties", [f32(4, -3, 2, 1)], base=ZERO4, weights=[1], density=0.25, rescale=True)
    np.testing.assert_array_equal(got, f32(10, 0, 0, 0))


def test_ties_global_keeps_one_more_than_the_share():
    # density 0.25 of 4 is 1; the threshold is the largest magnitude left out (3), which is kept: 4 and -3
    got = merge_tensors("ties-global", [f32(4, -3, 2, 1)], base=ZERO4, density=0.25)
    np.testing.assert_array_equal(got, f32(4, -3, 0, 0))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_divides_what_it_keeps_by_the_density(method):
    base, source = np.zeros(6, np.float32), f32(1, 2, 3, 4, 5, 6)
    mask = uniforms(address(9, method, "w", "a"), source) < 0.5
    settings = {"base": base, "weights": [1], "density": 0.5, "seed": 9, "tensor_name": "w", "sources": ["a"]}
    assert 0 < mask.sum() < 6
    # The paper's rule divides what is kept by one half.
    np.testing.assert_array_equal(merge_tensors(method, [source], **settings), source * mask * 2)
    # mergekit: the sum of absolute values, 21, comes back
    restored = merge_tensors(method, [source], **settings, rescale=True)
    np.testing.assert_allclose(restored, source * mask * 21 / (source * mask).sum(), rtol=1e-6)
    np.testing.assert_array_equal(merge_tensors(method, [source], **settings, rescale=False), source * mask)


def test_dare_keeps_the_expected_share_and_the_expected_delta():
    # 200,000 elements: the share has standard deviation sqrt(.3 * .7 / 200000) = 0.001; five of them
    source = np.ones(200_000, np.float32)
    got = merge_tensors("dare_linear", [source], base=0 * source, weights=[1], density=0.3)
    assert abs((got != 0).mean() - 0.3) < 0.005
    assert abs(got.mean() - 1) < 0.02


def test_breadcrumbs_drops_the_largest_and_the_smallest():
    # density 0.5 of 4 keeps two, gamma 0.25 drops one at the top: 4 goes, 3 and 2 stay, 1 goes
    settings = {"base": ZERO4, "weights": [1], "gamma": 0.25}
    got = merge_tensors("breadcrumbs", [f32(4, -3, 2, 1)], density=0.5, **settings)
    np.testing.assert_array_equal(got, f32(0, -3, 2, 0))
    # density 0.75 needs three and still drops the largest; density 1 drops nothing
    assert merge_tensors("breadcrumbs", [f32(4, -3, 2, 1)], density=0.75, **settings).tolist() == [0, -3, 2, 1]
    assert merge_tensors("breadcrumbs", [f32(4, -3, 2, 1)], density=1.0, **settings).tolist() == [4, -3, 2, 1]


def test_breadcrumbs_of_a_short_tensor_keeps_its_share():
    # gamma 0.01 of 50 drops int(0.5) = 0 elements: a slice up to -0 would be empty and zero the delta
    delta = np.arange(1, 51, dtype=np.float32)
    got = merge_tensors("breadcrumbs", [delta], base=0 * delta, weights=[1], density=0.5)
    np.testing.assert_array_equal(got, delta * (delta > 25))


def test_breadcrumbs_within_rows_are_the_authors_masks():
    # Their code, written out: in every row (last dimension) drop the largest int(n * gamma), then keep the density.
    generator = np.random.default_rng(4)
    for shape in [(6, 40), (40,), (2, 3, 20)]:
        delta = torch.from_numpy(np.float32(generator.standard_normal(shape)))
        wanted = delta
        for share, value in ((0.1, 0.0), (0.3, 1.0)):
            _, places = torch.topk(wanted.abs(), int(shape[-1] * share))
            mask = torch.full(shape, 1.0 - value).scatter_(-1, places, value)
            wanted = mask * wanted
        settings = {"base": torch.zeros(shape), "weights": [1.0], "density": 0.3, "gamma": 0.1}
        assert torch.equal(merge_tensors("breadcrumbs", [delta], within="row", **settings), wanted)
        if len(shape) > 1:
            assert not torch.equal(merge_tensors("breadcrumbs", [delta], **settings), wanted)


def test_breadcrumbs_ties_elects():
    # a keeps 3, b keeps -2 at the second place (gamma .25 drops each one's largest): 3 - 2 = 1, plus: 3 / 1
    a, b = f32(9, 3, 0, 0), f32(-9, -2, 0, 0)
    got = merge_tensors(
        "breadcrumbs_ties", [a, b], base=ZERO4, weights=[1, 1], density=0.25, gamma=0.25, normalize=True
    )
    np.testing.assert_array_equal(got, f32(0, 3, 0, 0))


def test_della_keeps_by_rank_and_divides_by_the_chance():
    # one row of 3: probabilities 0.5 - 0.2, 0.5, 0.5 + 0.2 by rank; (5, 1, 3) has ranks 2, 0, 1
    source = np.float32([[5, 1, 3]])
    probabilities = np.float32([[0.7, 0.3, 0.5]])
    for seed in range(20):
        mask = uniforms(address(seed, "della_linear", "", "0"), source) < probabilities
        got = merge_tensors("della_linear", [source], base=0 * source, weights=[1], density=0.5, epsilon=0.2, seed=seed)
        np.testing.assert_allclose(got, source * mask / probabilities, rtol=1e-6)


def test_della_drops_small_elements_more_often():
    source = np.tile(np.arange(1, 11, dtype=np.float32), (20_000, 1))
    kept = merge_tensors("della", [source], base=0 * source, density=0.5, epsilon=0.4, rescale="none") != 0
    # chance of rank r in 0..9: 0.1 + 0.8 * r / 9; standard deviation at most 0.0036
    np.testing.assert_allclose(kept.mean(0), 0.1 + 0.8 * np.arange(10) / 9, atol=0.018)


def test_della_refuses_chances_outside_the_unit_interval():
    with pytest.raises(RequestError, match="outside"):
        merge_tensors("della", [f32(1)], base=f32(0), density=0.1, epsilon=0.15)
    with pytest.raises(RequestError, match=r"epsilon below 0\.1"):
        merge_tensors("della_linear", [f32(1)], base=f32(0), density=0.9, epsilon=0.15)


def test_every_method_has_a_case_here():
    here = Path(__file__)
    others = (
        "test_methods_damc.py",
        "test_methods_ssam.py",
        "test_methods_swudi.py",
        "test_methods_tsv.py",
        "test_methods_wudi.py",
    )
    files = (here, *(here.with_name(name) for name in others))
    text = "".join(file.read_text() for file in files)
    assert [name for name in METHODS.names() if f'"{name}"' not in text] == []
