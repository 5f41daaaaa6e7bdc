"""Our methods against mergekit's, tensor by tensor, in float32.

How near they must be, and why:

- TIES, breadcrumbs, task arithmetic and passthrough do the same operations in the same order: equal to the last bit
  (0 units), magnitudes that tie at a threshold aside, where mergekit's unstable sort keeps any. Those are counted.
- linear: mergekit's kernel fuses product and sum on most processors, ours rounds both: two units in the last
  place of the sum of absolute terms.
- slerp, nuslerp, Model Stock, Karcher and every rescaled method measure norms, which mergekit sums in float32 and we in
  float64: a few parts in a million of the largest number that took part.
- DARE and DELLA draw masks: theirs is replaced by ours, and the rest of their arithmetic must follow.
"""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
import pytest
import torch
from mergekit import sparsify
from mergekit.merge_methods import merge_tensors as mergekit_merge

from mcompose.errors import NumericsError
from mcompose.methods import METHODS, merge_tensors
from mcompose.methods.core.prune import band_ranks, largest_ranks
from mcompose.methods.core.randomness import address, uniforms

SHAPES = [(), (1,), (7,), (64, 48), (3, 4, 5), (0,), (0, 4)]
WEIGHTS = {
    "equal": (1 / 3, 1 / 3, 1 / 3),
    "unequal": (0.5, 0.3, 0.2),
    "negative": (0.7, -0.4, 0.9),
    "zero-sum": (0.5, 0.5, -1.0),
}
DENSITIES = [0.0, 0.01, 0.2, 0.5, 1.0]
PRECISIONS = ["float32", "bfloat16"]

COUNTS: Counter[str] = Counter()

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_weight = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
every_density = pytest.mark.parametrize("density", DENSITIES)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    numbers = ", ".join(f"{name} {count}" for name, count in sorted(COUNTS.items()))
    print(f"\nmergekit conformance: {numbers}")  # noqa: T201 - the figure is read from `pytest -s`


@pytest.fixture(autouse=True)
def _quiet_numpy():
    with np.errstate(all="raise", under="ignore"):
        yield


def make(shape, precision, *, count=3, seed=0):
    """A base and sources near it; ``bfloat16`` rounds them first, so that many magnitudes tie."""
    generator = np.random.default_rng(seed + prod(shape))
    base = torch.from_numpy(np.asarray(generator.standard_normal(shape), np.float32))
    sources = [
        base + 0.05 * torch.from_numpy(np.asarray(generator.standard_normal(shape), np.float32)) for _ in range(count)
    ]
    if precision == "bfloat16":
        base, sources = base.bfloat16().float(), [source.bfloat16().float() for source in sources]
    return base, sources


def theirs(method, sources, base=None, **parameters):
    tensors = sources if base is None else [base, *sources]
    merged = mergekit_merge(
        tensors, method, base_index=None if base is None else 0, parameters=parameters, dtype=torch.float32
    )
    return merged.numpy()


def ours(method, sources, base=None, **settings):
    return merge_tensors(method, sources, base=base, **settings).numpy()


def count(method, compared, excluded=0):
    COUNTS["cases"] += 1
    COUNTS[f"cases:{method}"] += 1
    COUNTS["elements"] += int(compared)
    COUNTS["excluded at a threshold"] += int(excluded)


def assert_equal_but_for(method, got, wanted, excluded):
    kept = ~excluded
    np.testing.assert_array_equal(got[kept], wanted[kept])
    count(method, kept.sum(), excluded.sum())


def assert_near(method, got, wanted, scale, *, parts=4e-6):
    assert got.shape == wanted.shape
    assert got.size == 0 or np.abs(got - wanted).max() <= parts * max(scale, 1e-30)
    count(method, got.size)


def at_threshold(sources, base, rank_lists):
    """Elements where some source's magnitude equals one that straddles a cut."""
    excluded = np.zeros(tuple(base.shape), bool)
    for source, ranks in zip(sources, rank_lists, strict=True):
        magnitude = np.abs((source - base).numpy())
        ordered = np.sort(magnitude, axis=None)[::-1]
        for rank in ranks:
            if 0 < rank < ordered.size and ordered[rank - 1] == ordered[rank]:
                excluded |= magnitude == ordered[rank]
    return excluded


def largest(*tensors):
    return max(float(tensor.abs().max()) if tensor.numel() else 0.0 for tensor in tensors)


@every_shape
@every_weight
@every_precision
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(shape, weights, precision, normalize):
    _, sources = make(shape, precision)
    total = float(np.float32(np.float32(weights[0]) + np.float32(weights[1])) + np.float32(weights[2]))
    if normalize and total == 0:
        # mergekit gives infinities; a merge that has no value is an error here.
        with np.errstate(all="ignore"):
            assert not np.isfinite(theirs("linear", sources, weight=list(weights))).any()
        with pytest.raises(NumericsError, match="sum to zero"):
            ours("linear", sources, weights=weights)
        return
    got = ours("linear", sources, weights=weights, normalize=normalize)
    wanted = theirs("linear", sources, weight=list(weights), normalize=normalize)
    terms = sum(abs(weight) * np.abs(source.numpy()) for weight, source in zip(weights, sources, strict=True))
    limit = 2 * 2.0**-23 * terms / (abs(total) if normalize else 1.0)
    assert (np.abs(got - wanted) <= limit).all()
    count("linear", got.size)


@every_shape
@every_precision
def test_naivemc_is_mergekits_uniform_linear(shape, precision):
    _, sources = make(shape, precision)
    wanted = theirs("linear", sources, weight=[1.0] * 3)
    assert_near("naivemc", ours("naivemc", sources), wanted, largest(*sources), parts=3 * 2.0**-23)


@every_shape
@every_precision
def test_weight_mix_is_mergekits_linear_of_two(shape, precision):
    _, sources = make(shape, precision, count=2)
    wanted = theirs("linear", sources, weight=[0.75, 0.25])
    assert_near("weight-mix", ours("weight-mix", sources, beta=0.75), wanted, largest(*sources), parts=3 * 2.0**-23)


@every_shape
@every_weight
@every_precision
@pytest.mark.parametrize("settings", [{}, {"lambda": 0.7}, {"normalize": True}], ids=str)
def test_task_arithmetic(shape, weights, precision, settings):
    base, sources = make(shape, precision)
    got = ours("task_arithmetic", sources, base, weights=weights, **settings)
    wanted = theirs("task_arithmetic", sources, base, weight=list(weights), **settings)
    assert_equal_but_for("task_arithmetic", got, wanted, np.zeros(shape, bool))


@every_shape
@every_weight
@every_density
@every_precision
@pytest.mark.parametrize("settings", [{}, {"normalize": False, "lambda": 1.3}], ids=str)
def test_ties(shape, weights, density, precision, settings):
    base, sources = make(shape, precision)
    got = ours("ties", sources, base, weights=weights, density=density, **settings)
    wanted = theirs("ties", sources, base, weight=list(weights), density=density, **settings)
    excluded = at_threshold(sources, base, [largest_ranks(prod(shape), density)] * 3)
    assert_equal_but_for("ties", got, wanted, excluded)


def test_ties_with_one_density_a_source():
    base, sources = make((64, 48), "float32")
    densities = [0.5, 0.01, 0.2]
    got = ours("ties", sources, base, weights=WEIGHTS["unequal"], density=densities)
    wanted = theirs("ties", sources, base, weight=list(WEIGHTS["unequal"]), density=densities)
    excluded = at_threshold(sources, base, [largest_ranks(64 * 48, density) for density in densities])
    assert_equal_but_for("ties", got, wanted, excluded)


@every_shape
@every_density
@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_restored_norms(shape, density, method):
    base, sources = make(shape, "float32")
    got = ours(method, sources, base, weights=WEIGHTS["unequal"], density=density, rescale=True)
    wanted = theirs(method, sources, base, weight=list(WEIGHTS["unequal"]), density=density, rescale=True)
    ranks = largest_ranks(prod(shape), density) if method == "ties" else band_ranks(prod(shape), density, 0.01)
    excluded = at_threshold(sources, base, [ranks] * 3)
    scale = largest(base, *(source - base for source in sources)) / max(density, 1 / max(prod(shape), 1))
    assert_near(method, got[~excluded], wanted[~excluded], scale)


@every_shape
@every_weight
@every_density
@every_precision
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_breadcrumbs(shape, weights, density, precision, method, gamma):
    base, sources = make(shape, precision)
    got = ours(method, sources, base, weights=weights, density=density, gamma=gamma)
    wanted = theirs(method, sources, base, weight=list(weights), density=density, gamma=gamma)
    excluded = at_threshold(sources, base, [band_ranks(prod(shape), density, gamma)] * 3)
    assert_equal_but_for(method, got, wanted, excluded)


@every_shape
@every_precision
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0, -0.2, 1.4])
@pytest.mark.parametrize("spread", [0.001, 5.0], ids=["parallel", "apart"])
def test_slerp(shape, precision, t, spread):
    base, sources = make(shape, precision, count=2)
    first, second = base, base + spread * (sources[0] - base) / 0.05
    wanted = theirs("slerp", [second], first, t=t)
    assert_near("slerp", ours("slerp", [first, second], t=t), wanted, 2 * largest(first, second))


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("which", ["first zero", "second zero", "both zero", "equal", "opposite"])
def test_slerp_of_degenerate_pairs(t, which):
    _, (first, second) = make((7,), "float32", count=2)
    first = first * 0 if which in ("first zero", "both zero") else first
    second = {"second zero": second * 0, "both zero": second * 0, "equal": first, "opposite": -first}.get(which, second)
    got = ours("slerp", [first, second], t=t)
    assert np.isfinite(got).all()
    assert_near("slerp", got, theirs("slerp", [second], first, t=t), largest(first, second, first * 0 + 1e-3))


@pytest.mark.parametrize("shape", [(1,), (7,), (64, 48), (3, 4, 5), (0, 4)], ids=str)
@every_precision
@pytest.mark.parametrize(
    "settings", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}], ids=str
)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.3), (1.0, -1.0)], ids=str)
def test_nuslerp(shape, precision, settings, with_base, weights):
    base, sources = make(shape, precision, count=2)
    origin = base if with_base else None
    if shape == (1,) or (not with_base and precision == "bfloat16" and "nuslerp_flatten" not in settings):
        # Single elements are parallel or opposite: opposite ones have no arc, and both fall back to the line.
        sources = [source.abs() + 1 for source in sources]
    got = ours("nuslerp", sources, origin, weights=weights, **settings)
    wanted = theirs("nuslerp", sources, origin, weight=list(weights), **settings)
    # mergekit's arc cosine is float32: near-parallel rows lose digits there (its own error, up to one in 1e3).
    assert_near("nuslerp", got, wanted, 10 * largest(base, *sources), parts=2e-4)


@every_precision
@pytest.mark.parametrize("shape", [(1,), (7,), (64, 48), (3, 4, 5), (0,), (0, 4)], ids=str)
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_model_stock(shape, precision, filter_wise, number):
    base, sources = make(shape, precision, count=number)
    # Fine-tunes share a direction; without one t has its pole where the models oppose each other.
    sources = [source + 0.1 * torch.sign(base) for source in sources]
    got = ours("model_stock", sources, base, filter_wise=filter_wise)
    wanted = theirs("model_stock", sources, base, filter_wise=filter_wise)
    assert_near("model_stock", got, wanted, largest(base, *sources), parts=2e-5 if filter_wise else 4e-6)


@every_shape
@every_precision
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_karcher(shape, precision, number):
    _, sources = make(shape, precision, count=number)
    sources = [source + (3 if shape in ((), (1,)) else 0) for source in sources]
    wanted = theirs("karcher", sources)
    # Both stop at a step below 1e-5, so they may stop at different steps.
    assert_near("karcher", ours("karcher", sources), wanted, largest(*sources), parts=2e-5)


@every_shape
@every_precision
@pytest.mark.parametrize("scale", [None, 0.5, -2.0])
def test_passthrough(shape, precision, scale):
    _, sources = make(shape, precision, count=1)
    settings = {} if scale is None else {"scale": scale}
    assert_equal_but_for(
        "passthrough",
        ours("passthrough", sources, **settings),
        theirs("passthrough", sources, **settings),
        np.zeros(shape, bool),
    )


@pytest.fixture
def our_draws(monkeypatch):
    """Hands mergekit our draws in place of torch's: its Bernoulli trials then give our masks."""
    queue = []
    monkeypatch.setattr(
        sparsify.torch, "bernoulli", lambda chance: (queue.pop(0).reshape(chance.shape) < chance).float()
    )
    return queue


@every_shape
@every_weight
@every_density
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_with_our_mask(our_draws, shape, weights, density, method, rescale):
    base, sources = make(shape, "float32")
    draws = [uniforms(address(3, method, "w", str(index)), base) for index in range(3)]
    our_draws.extend(draws)
    got = ours(method, sources, base, weights=weights, density=density, rescale=rescale, seed=3, tensor_name="w")
    wanted = theirs(method, sources, base, weight=list(weights), density=density, rescale=rescale)
    deltas = [source - base for source in sources]
    factor = max(
        (
            float(d.abs().sum() / max(float((d * (u < density)).abs().sum()), 1e-9))
            for d, u in zip(deltas, draws, strict=True)
            if (u < density).any()
        ),
        default=1.0,
    )
    if rescale:
        assert_near(method, got, wanted, largest(base) + factor * largest(*deltas))
    else:
        assert_equal_but_for(method, got, wanted, np.zeros(shape, bool))


@pytest.mark.parametrize("shape", [(7,), (64, 48), (0, 4)], ids=str)
@every_weight
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.2), (0.3, 0.15), (1.0, 0.15), (0.0, 0.15)])
@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("rescale", [True, False])
def test_della_with_our_draws(our_draws, shape, weights, density, epsilon, method, rescale):
    if prod(shape) == 0 and 0 < density < 1:
        pytest.skip("mergekit has no smallest rank of nothing")
    base, sources = make(shape, "float32")
    our_draws.extend(uniforms(address(3, method, "w", str(index)), base) for index in range(3))
    settings = {"density": density, "epsilon": epsilon, "rescale": rescale}
    got = ours(method, sources, base, weights=weights, seed=3, tensor_name="w", **settings)
    wanted = theirs(method, sources, base, weight=list(weights), **settings)
    # A chance is rounded in another order: an element whose draw falls between the two is dropped by one alone.
    same = np.abs(got - wanted) <= 4e-6 * (largest(base) + 10 * largest(*sources))
    assert (~same).sum() <= 1
    count(method, same.sum(), (~same).sum())


def test_mergekits_known_defects_are_not_ours():
    # A row of one element has no rank: mergekit divides zero by zero; here it is kept with probability `density`.
    base, sources = torch.zeros(4000, 1), [torch.ones(4000, 1)]
    with pytest.raises(RuntimeError):
        theirs("della", sources, base, weight=[1.0], density=0.5)
    kept = ours("della", sources, base, weights=[1.0], density=0.5, rescale="none")
    assert 0.45 < kept.mean() < 0.55
    # Tensors shorter than `tol` are zeroed by mergekit's Karcher mean.
    short = [torch.full((4,), 1e-7), torch.full((4,), 3e-7)]
    assert not theirs("karcher", short).any()
    np.testing.assert_allclose(ours("karcher", short), np.full(4, 2e-7), rtol=1e-6)


def test_our_masks_do_not_depend_on_the_order_of_tensors_and_mergekits_do():
    base, sources = make((64, 48), "float32")
    first = [ours("dare_linear", sources, base, density=0.3, tensor_name=name) for name in ("a", "b")]
    second = [ours("dare_linear", sources, base, density=0.3, tensor_name=name) for name in ("b", "a")]
    np.testing.assert_array_equal(first[0], second[1])
    np.testing.assert_array_equal(first[1], second[0])
    assert not np.array_equal(first[0], first[1])
    state = torch.random.get_rng_state()
    ours("dare_linear", sources, base, density=0.3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_method_that_mergekit_shares_is_compared():
    from mergekit.merge_methods import registered_methods

    shared = set(METHODS.names()) & set(registered_methods())
    assert shared <= {
        "linear", "task_arithmetic", "slerp", "nuslerp", "model_stock", "karcher", "passthrough", "ties",
        "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
    }  # fmt: skip
