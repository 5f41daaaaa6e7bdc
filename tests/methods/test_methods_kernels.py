"""Kernels against numpy's and torch's conversions, exhaustively where 16 bits allow it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcompose.methods import METHODS, TensorTask
from mcompose.methods.core import kernels
from mcompose.methods.core.method import REQUIRED
from mcompose.methods.core.prune import keep_ranks
from mcompose.methods.core.prune_program import Combination, KeepRandom, KeepRanks, PruneProgram
from mcompose.methods.core.randomness import address, uniforms
from mcompose.methods.core.select import NOTHING_ABOVE, RankFinder

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
    count = kernels.convert(ALL_16, out)
    wanted = torch.from_numpy(ALL_16.view(np.int16)).view(torch.bfloat16).float().numpy()
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(out.view(np.uint32)[numbers], wanted.view(np.uint32)[numbers])
    assert np.isnan(out[~numbers]).all()
    assert count == (~np.isfinite(wanted)).sum() == 2 * 128
    halves = ALL_16.view(np.float16)
    count = kernels.convert(halves, out)
    wanted = halves.astype(np.float32)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(np.signbit(out[~np.isnan(out)]), np.signbit(wanted[~np.isnan(out)]))
    assert count == (~np.isfinite(wanted)).sum()
    assert kernels.count_nan(halves) == np.isnan(wanted).sum()


def test_narrowing_rounds_to_nearest_even_and_counts_what_is_not_finite():
    values = every_kind_of_float()
    out = np.empty(values.size, np.uint16)
    count = kernels.convert(values, out)
    wanted = torch.from_numpy(values).bfloat16()
    got = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    numbers = ~torch.isnan(wanted)
    assert torch.equal(got[numbers].view(torch.int16), wanted[numbers].view(torch.int16))
    assert torch.isnan(got[~numbers]).all()
    assert count == int((~torch.isfinite(wanted)).sum())

    half = np.empty(values.size, np.float16)
    count = kernels.convert(values, half)
    with np.errstate(all="ignore"):
        wanted = values.astype(np.float16)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(half.view(np.uint16)[numbers], wanted.view(np.uint16)[numbers])
    assert np.isnan(half[~numbers]).all()
    assert count == (~np.isfinite(wanted)).sum()


def test_float64_is_rounded_once():
    values = np.array([1.0 + 2.0**-24, 1e300, np.nan, -0.1])
    out = np.empty(4, np.float32)
    assert kernels.convert(values, out) == 2
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, values.astype(np.float32))
    double = np.empty(4)
    assert kernels.convert(out, double) == 2
    np.testing.assert_array_equal(double, out.astype(np.float64))


def test_read_only_arrays_are_taken():
    values = np.frombuffer(np.arange(8, dtype=np.uint16).tobytes(), np.uint16)
    assert not values.flags.writeable
    assert kernels.convert(values, np.empty(8, np.float32)) == 0


def raw(values, kind):
    """float32 numbers in an element type, and what they are after that rounding."""
    if kind == "bfloat16":
        tensor = torch.from_numpy(values).bfloat16()
        return tensor.view(torch.int16).numpy().view(np.uint16), tensor.float().numpy()
    chunk = values.astype(kind)
    return chunk, chunk.astype(np.float32)


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 10_000])
def test_pouring_rounds_every_product_and_every_sum(size):
    generator = np.random.default_rng(1)
    kinds = ("bfloat16", "float16", "float32", "float64")
    values = generator.standard_normal((5, size)).astype(np.float32)
    chunks, exact = zip(*(raw(row, kind) for row, kind in zip(values, kinds, strict=False)), strict=True)
    weights = np.float32([0.3, -0.7, 1.1, 0.2])
    out = np.empty(size, np.float32)
    assert kernels.weighted_sum(chunks, weights, out, divisor=0.9, scale=1.5) == 0
    wanted = weights[0] * exact[0]
    for weight, row in zip(weights[1:], exact[1:], strict=True):
        wanted = wanted + weight * row
    np.testing.assert_array_equal(out, wanted / np.float32(0.9) * np.float32(1.5))

    base, origin = raw(values[4], "bfloat16")
    kernels.weighted_sum(chunks, weights, out, base=base, divisor=0.9, scale=1.5)
    wanted = weights[0] * (exact[0] - origin)
    for weight, row in zip(weights[1:], exact[1:], strict=True):
        wanted = wanted + weight * (row - origin)
    np.testing.assert_array_equal(out, origin + wanted / np.float32(0.9) * np.float32(1.5))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", METHODS.names())
def test_what_is_not_finite_in_a_source_is_not_finite_in_the_result(name, kind, broken):
    method = METHODS.get(name)
    if method.program is None:
        pytest.skip("the function sees whole tensors; numpy carries it on")
    count = min(3, method.max_sources or 3)
    generator = np.random.default_rng(5)
    sources = [raw(generator.standard_normal(4096).astype(np.float32), kind)[0] for _ in range(count)]
    base = raw(generator.standard_normal(4096).astype(np.float32), kind)[0]
    spoiled, _ = raw(np.full(1, broken, np.float32), kind)
    sources[-1] = sources[-1].copy()
    sources[-1][2100] = spoiled[0]
    given = {p.name: 0.5 for p in method.parameters if p.default is REQUIRED or p.name in ("density", "t")}
    if name.startswith("della"):
        given["epsilon"] = 0.1
    task = TensorTask("w", (4, 1024), tuple("abc"[:count]), (1 / count,) * count, given, has_base=True)
    program = method.program(task)
    origin = base if method.base != "unused" else None
    if all(program.measure(index, 0, sources, origin) for index in range(program.passes)):
        assert program.combine(0, sources, origin, np.empty(4096, np.float32)) >= 1


@pytest.mark.parametrize("size", [1, 31, 33, 2048, 2049, 140_001])
@pytest.mark.parametrize("cut", [2048, 4096, 65536, 204_800])
def test_inner_products_do_not_depend_on_the_cut(cut, size):
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((2, size)).astype(np.float32)
    sums = []
    for step in (cut, 1 << 30):
        totals = np.zeros(3)
        for start in range(0, size, step):
            part = slice(start, start + step)
            kernels.gram([x[part], y[part]], totals)
        sums.append(totals)
    np.testing.assert_array_equal(sums[0], sums[1])
    wide = [row.astype(np.longdouble) for row in (x, y)]
    exact = [float((wide[i] * wide[j]).sum()) for i, j in ((0, 0), (0, 1), (1, 1))]
    np.testing.assert_allclose(sums[0], exact, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("size", [1, 33, 5000])
def test_absolute_values_are_summed_before_and_after_the_cut(size):
    generator = np.random.default_rng(9)
    source, base = generator.standard_normal((2, size)).astype(np.float32)
    program = PruneProgram([KeepRandom(0.3, 77)], Combination((1.0,)), match_norm=True)
    program.measure(0, 0, [source], base)
    delta = source - base
    kept = delta[uniforms(77, delta) < np.float32(0.3)]
    wanted = [np.abs(values.astype(np.float64)).sum() for values in (delta, kept)]
    np.testing.assert_allclose(program.norms[0], wanted, rtol=1e-7)


@pytest.mark.parametrize(("stride", "groups"), [(7, 30), (1, 7)])
def test_groups_are_rows_or_columns(stride, groups):
    generator = np.random.default_rng(6)
    x, y, base = generator.standard_normal((3, 30, 7)).astype(np.float32)
    totals, out = np.zeros((3, groups)), np.empty(210, np.float32)
    weights = generator.standard_normal((2, groups)).astype(np.float32)
    for part in (slice(0, 11), slice(11, 150), slice(150, 210)):
        chunks, origin = [x.reshape(-1)[part], y.reshape(-1)[part]], base.reshape(-1)[part]
        kernels.group_gram(chunks, totals, start=part.start, stride=stride, base=origin)
        kernels.grouped_sum(chunks, weights, out[part], start=part.start, stride=stride, base=origin)
    axis = 1 if stride > 1 else 0
    deltas = [(row - base).astype(np.float64) for row in (x, y)]
    wanted = [(deltas[i] * deltas[j]).sum(axis) for i, j in ((0, 0), (0, 1), (1, 1))]
    np.testing.assert_allclose(totals, wanted, rtol=1e-12)
    laid = weights[:, :, None] if axis == 1 else weights[:, None, :]
    np.testing.assert_array_equal(out.reshape(30, 7), base + (laid[0] * (x - base) + laid[1] * (y - base)))


def splitmix64(seed, number):
    """The published generator, in Python's own integers."""
    mask = (1 << 64) - 1
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_draws_are_numpys_and_torchs_and_those_of_splitmix64():
    # First outputs of SplitMix64 seeded with 1234567, as published with its reference code.
    assert [splitmix64(1234567, i) for i in range(2)] == [6457827717110365317, 3203168211198807973]
    key, size = address(0, "dare_linear", "model.norm.weight", "sees"), 5 * 1009
    out = np.empty(size, np.float32)
    kernels.uniforms(key, out)
    for place in (0, 1, 1023, 1024, 2047, 2048, 3071, 3072, 5044):
        tile, rest = divmod(place, 2048)
        word = splitmix64(key, tile * 1024 + rest % 1024)
        assert out[place] == (word >> 40 if rest < 1024 else (word >> 8) & 0xFFFFFF) / 2**24
    like = np.zeros((5, 1009), np.float32)
    np.testing.assert_array_equal(uniforms(key, like), out.reshape(5, 1009))
    np.testing.assert_array_equal(uniforms(key, torch.from_numpy(like)).numpy(), out.reshape(5, 1009))
    assert uniforms(key, np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_draws_are_even_and_halves_of_a_word_are_strangers():
    draws = np.empty(1 << 20, np.float32)
    kernels.uniforms(3, draws)
    counts = np.bincount((draws * 256).astype(int), minlength=256)
    assert ((counts - 4096) ** 2 / 4096).sum() < 360  # chi-square, 255 degrees of freedom: beyond 1 in 100,000
    first, second = draws.reshape(-1, 2, 1024).transpose(1, 0, 2).reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(first.size)


@pytest.mark.parametrize("density", [0.0, 1e-7, 0.1, 0.5, 0.9, 1 - 2**-24])
def test_a_random_cut_keeps_the_draws_below_the_density(density):
    key = address(1, "dare_linear", "w", "a")
    delta = np.ones(30_000, np.float32)
    program = PruneProgram([KeepRandom(density, key)], Combination((1.0,)))
    out = np.empty_like(delta)
    for part in (slice(0, 4096), slice(4096, None)):
        program.combine(part.start, [delta[part]], None, out[part])
    np.testing.assert_array_equal(out, uniforms(key, delta) < np.float32(density))


@pytest.mark.parametrize("ranks", [(0, 700), (50, 700), (0, 9999), (300, 301), (1, 2)])
@pytest.mark.parametrize("cut", [2048, 6144, 10_240])
def test_a_band_keeps_equal_magnitudes_in_element_order(ranks, cut):
    generator = np.random.default_rng(8)
    delta = np.round(generator.standard_normal(10_000), 1).astype(np.float32)
    program = PruneProgram([KeepRanks(ranks, delta.size)], Combination((1.0,)))
    out = np.empty_like(delta)
    for index in range(program.passes + 1):
        for start in range(0, delta.size, cut):
            part = slice(start, start + cut)
            if index < program.passes:
                program.measure(index, start, [delta[part]], None)
            else:
                program.combine(start, [delta[part]], None, out[part])
    np.testing.assert_array_equal(out, keep_ranks(delta, ranks))


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


@pytest.mark.parametrize("kind", ["normal", "tied", "subnormal", "constant", "growing", "zero first"])
@pytest.mark.parametrize("ranks", [(1, 2), (100, 5000), (10_006, 3), (0, 10_007)])
def test_ranks_are_exact(kind, ranks):
    generator = np.random.default_rng(3)
    values = generator.standard_normal(10_007).astype(np.float32)
    values = {
        "normal": values,
        "tied": np.round(values, 1),
        "subnormal": values * np.float32(1e-42),
        "constant": np.full_like(values, -0.25),
        "growing": values * np.linspace(1e-6, 1, values.size, dtype=np.float32) ** 4,
        "zero first": np.where(np.arange(values.size) < 5000, 0, values).astype(np.float32),
    }[kind]
    ordered = np.sort(np.abs(values))[::-1]
    finder = RankFinder(ranks, values.size)
    passes = 0
    while passes < finder.passes:
        for part in np.split(values, [1000, 1017, 5000]):
            finder.measure(passes, part)
        passes += 1
    for which, rank in enumerate(ranks):
        key, ties = finder.cut(which)
        if not 0 < rank < values.size:
            assert (key, ties) == ((-1, 0) if rank else (NOTHING_ABOVE, 0))
            continue
        threshold = np.array(key, np.uint32).view(np.float32)
        assert threshold == ordered[rank - 1]
        assert (np.abs(values) > threshold).sum() + ties == rank
        assert 1 <= ties <= (np.abs(values) == threshold).sum()
    finder.measure(1, values)  # a pass that is not needed changes nothing
    if passes < 2:
        assert finder.cut(0)[1] <= values.size


@pytest.mark.parametrize(("spread", "passes"), [(0.0, 1), (4.0, 2)])
def test_a_second_pass_is_made_only_where_the_first_chunk_misleads(spread, passes):
    values = np.random.default_rng(4).standard_normal(300_000).astype(np.float32)
    values *= np.linspace(1, 1 + spread, values.size, dtype=np.float32)
    finder = RankFinder((0, 60_000), values.size)
    for part in np.split(values, 3):
        finder.measure(0, part)
    assert finder.passes == passes
    for part in np.split(values, 3):
        finder.measure(1, part)
    assert finder.passes == passes
    key, ties = finder.cut(1)
    threshold = np.array(key, np.uint32).view(np.float32)
    assert (np.abs(values) > threshold).sum() + ties == 60_000
    assert threshold == np.sort(np.abs(values))[-60_000]


def test_rank_chances_follow_a_stable_sort():
    generator = np.random.default_rng(4)
    rows = np.round(generator.standard_normal((9, 301)), 1).astype(np.float32)
    out = np.empty(rows.size, np.float32)
    kernels.rank_probabilities(rows.reshape(-1), None, length=301, low=0.0, span=300.0, out=out)
    wanted = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1, kind="stable")
    np.testing.assert_allclose(out.reshape(rows.shape), wanted, atol=1e-4)
