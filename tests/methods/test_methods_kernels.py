"""Kernels against numpy's and torch's conversions, exhaustively where 16 bits allow it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcompose.methods import kernels, prune_kernels
from mcompose.methods.randomness import address, uniforms
from mcompose.methods.select import RankFinder

ALL_16 = np.arange(65536, dtype=np.uint16)


def every_kind_of_float():
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halves = ALL_16.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        neighbours = np.concatenate([np.nextafter(halves, np.float32(9e9)), np.nextafter(halves, np.float32(-9e9))])
        middles = (halves + np.roll(halves, 1)) / 2
    small = (generator.standard_normal(100_000) * 1e-6).astype(np.float32)
    large = (generator.standard_normal(100_000) * 7e4).astype(np.float32)
    return np.concatenate([patterns, halves, neighbours, middles, small, large])


def test_widening_is_exact_and_counts_what_is_not_finite():
    out = np.empty(65536, np.float32)
    count = kernels.widen_bf16(ALL_16, out)
    wanted = torch.from_numpy(ALL_16.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(out.view(np.uint32), wanted.view(np.uint32))
    assert count == (~np.isfinite(wanted)).sum() == 2 * 128
    count = kernels.widen_f16(ALL_16, out)
    wanted = ALL_16.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(wanted))
    assert count == (~np.isfinite(wanted)).sum()


def test_narrowing_rounds_to_nearest_even_and_counts_what_is_not_finite():
    values = every_kind_of_float()
    out = np.empty(values.size, np.uint16)
    count = kernels.narrow_bf16(values, out)
    wanted = torch.from_numpy(values).bfloat16()
    got = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    numbers = ~torch.isnan(wanted)
    assert torch.equal(got[numbers].view(torch.int16), wanted[numbers].view(torch.int16))
    assert torch.isnan(got[~numbers]).all()
    assert count == int((~torch.isfinite(wanted)).sum())

    count = kernels.narrow_f16(values, out)
    with np.errstate(all="ignore"):
        wanted = values.astype(np.float16)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(out[numbers], wanted.view(np.uint16)[numbers])
    assert np.isnan(out.view(np.float16)[~numbers]).all()
    assert count == (~np.isfinite(wanted)).sum()


def test_float64_is_rounded_once():
    values = np.array([1.0 + 2.0**-24, 1e300, np.nan, -0.1])
    out = np.empty(4, np.float32)
    assert kernels.widen_f64(values, out) == 2
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, values.astype(np.float32))
    assert kernels.count_nonfinite(out) == 2


def test_read_only_arrays_are_taken():
    values = np.frombuffer(np.arange(8, dtype=np.uint16).tobytes(), np.uint16)
    assert not values.flags.writeable
    assert kernels.widen_bf16(values, np.empty(8, np.float32)) == 0


def test_axpy_rounds_product_and_sum():
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((2, 5000)).astype(np.float32)
    out = y.copy()
    kernels.axpy(x, np.float32(0.3), out)
    np.testing.assert_array_equal(out, y + np.float32(0.3) * x)


@pytest.mark.parametrize("cut", [1, 31, 32, 1000, 65536, 200_000])
def test_inner_products_do_not_depend_on_the_cut(cut):
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((2, 140_000)).astype(np.float32)
    x, y = (x[:3000], y[:3000]) if cut == 1 else (x, y)
    sums = []
    for step in (cut, x.size):
        lanes, total = np.zeros(kernels.LANES), np.zeros(1)
        for start in range(0, x.size, step):
            kernels.dot_lanes(x[start : start + step], y[start : start + step], start, lanes, total)
        sums.append(total[0] + sum(lanes.tolist()))
    assert sums[0] == sums[1]
    exact = float((x.astype(np.longdouble) * y.astype(np.longdouble)).sum())
    assert abs(sums[0] - exact) < 1e-10


def test_draws_are_numpys_and_torchs_and_those_of_splitmix64():
    # First outputs of SplitMix64 seeded with 1234567, as published with its reference code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    draws = np.empty(3, np.float32)
    prune_kernels.uniforms(np.uint64(1234567), 0, draws)
    np.testing.assert_array_equal(draws, np.float32([(word >> 40) / 2**24 for word in published]))
    key = address(0, "dare_linear", "model.norm.weight", "sees")
    like = np.zeros((37, 11), np.float32)
    out = np.empty(like.size, np.float32)
    prune_kernels.uniforms(np.uint64(key), 0, out)
    np.testing.assert_array_equal(uniforms(key, like), out.reshape(37, 11))
    np.testing.assert_array_equal(uniforms(key, torch.from_numpy(like)).numpy(), out.reshape(37, 11))
    late = np.empty(5, np.float32)
    prune_kernels.uniforms(np.uint64(key), 100, late)
    np.testing.assert_array_equal(late, out[100:105])


def test_addresses_differ_in_every_part():
    keys = {
        address(seed, method, tensor, source)
        for seed in (0, 1)
        for method in ("dare_linear", "dare_ties")
        for tensor in ("a", "b", "")
        for source in ("x", "y", "ab")
    }
    assert len(keys) == 2 * 2 * 3 * 3
    assert address(0, "m", "a", "bc") != address(0, "m", "ab", "c")


@pytest.mark.parametrize("kind", ["normal", "tied", "subnormal", "constant"])
def test_ranks_are_exact(kind):
    generator = np.random.default_rng(3)
    values = generator.standard_normal(10_007).astype(np.float32)
    values = {
        "normal": values,
        "tied": np.round(values, 1),
        "subnormal": values * np.float32(1e-42),
        "constant": np.full_like(values, -0.25),
    }[kind]
    ordered = np.sort(np.abs(values))[::-1]
    ranks = (1, 2, 100, 5000, 10_006)
    finder = RankFinder(ranks, values.size)
    for index in range(2):
        for part in np.split(values, [1, 17, 5000]):
            finder.measure(index, part)
    for which, rank in enumerate(ranks):
        key, ties = finder.cut(which)
        threshold = np.array(key, np.uint32).view(np.float32)
        assert threshold == ordered[rank - 1]
        assert (np.abs(values) > threshold).sum() + ties == rank
        assert 1 <= ties <= (np.abs(values) == threshold).sum()


def test_rank_chances_follow_a_stable_sort():
    generator = np.random.default_rng(4)
    rows = np.round(generator.standard_normal((9, 301)), 1).astype(np.float32)
    out = np.empty(rows.size, np.float32)
    prune_kernels.rank_chances(rows.reshape(-1), 301, np.float32(0), np.float32(300), out)
    wanted = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1, kind="stable")
    np.testing.assert_allclose(out.reshape(rows.shape), wanted, atol=1e-4)
