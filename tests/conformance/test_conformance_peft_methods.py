"""`ties-peft` and DARE against PEFT's merge functions, and `ties-global` against the authors' rule.

The first two do the same operations in the same order, so they are equal to the last bit in float32, magnitudes that
tie at a threshold aside (PEFT's top-k keeps any of them); PEFT adds the base nowhere, so the base is zero here.
"""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from mcompose.methods import merge_tensors
from mcompose.methods.core.prune import largest_ranks
from mcompose.methods.core.randomness import address, uniforms

SHAPES = [(), (1,), (7,), (64, 48), (3, 4, 5), (0,), (0, 4)]
WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 0.3, 0.2), (0.7, -0.4, 0.9), (0.5, 0.5, -1.0)]
COUNTS: Counter[str] = Counter()

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_weight = pytest.mark.parametrize("weights", WEIGHTS, ids=str)
every_density = pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 1.0])


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    numbers = ", ".join(f"{name} {count}" for name, count in sorted(COUNTS.items()))
    print(f"\nPEFT conformance: {numbers}")  # noqa: T201 - the figure is read from `pytest -s`


def make(shape, *, rounded=False):
    generator = np.random.default_rng(prod(shape))
    deltas = [torch.from_numpy(np.asarray(generator.standard_normal(shape), np.float32)) for _ in range(3)]
    return [delta.bfloat16().float() for delta in deltas] if rounded else deltas


def tied(deltas, ranks):
    excluded = torch.zeros(deltas[0].shape, dtype=torch.bool)
    for delta in deltas:
        ordered = delta.abs().reshape(-1).sort(descending=True).values
        for rank in ranks:
            if 0 < rank < ordered.numel() and ordered[rank - 1] == ordered[rank]:
                excluded |= delta.abs() == ordered[rank]
    return excluded


def compare(method, got, wanted, excluded):
    assert torch.equal(got[~excluded], wanted[~excluded])
    COUNTS["cases"] += 1
    COUNTS[f"cases:{method}"] += 1
    COUNTS["elements"] += int((~excluded).sum())
    COUNTS["excluded at a threshold"] += int(excluded.sum())


@every_shape
@every_weight
@every_density
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
def test_ties(shape, weights, density, rounded):
    deltas = make(shape, rounded=rounded)
    wanted = merge_utils.ties(deltas, torch.tensor(weights), density)
    got = merge_tensors("ties-peft", deltas, base=torch.zeros(shape), weights=weights, density=density)
    compare("ties-peft", got, wanted, tied(deltas, largest_ranks(prod(shape), density, at_least_one=False)))


@every_shape
@every_density
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
def test_the_two_dialects_agree_at_equal_weights(shape, density):
    deltas = make(shape)
    settings = {"base": torch.zeros(shape), "weights": (1.0, 1.0, 1.0), "density": density}
    if largest_ranks(prod(shape), density) != largest_ranks(prod(shape), density, at_least_one=False):
        pytest.skip("mergekit keeps at least one element, PEFT none")
    assert torch.equal(merge_tensors("ties", deltas, **settings), merge_tensors("ties-peft", deltas, **settings))


@every_shape
@every_weight
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
def test_dare_linear_with_our_draws(monkeypatch, shape, weights, density):
    deltas = make(shape)
    draws = [uniforms(address(5, "dare_linear", "w", str(index)), deltas[0]) for index in range(3)]
    monkeypatch.setattr(merge_utils.torch, "bernoulli", lambda chance: (draws.pop(0) < chance).float())
    wanted = merge_utils.dare_linear(deltas, torch.tensor(weights), density)
    got = merge_tensors(
        "dare_linear", deltas, base=torch.zeros(shape), weights=weights, density=density, seed=5, tensor_name="w"
    )
    compare("dare_linear", got, wanted, torch.zeros(shape, dtype=torch.bool))


@every_weight
def test_task_arithmetic(weights):
    deltas = make((64, 48))
    wanted = merge_utils.task_arithmetic(deltas, torch.tensor(weights))
    got = merge_tensors("task_arithmetic", deltas, base=torch.zeros(64, 48), weights=weights)
    compare("task_arithmetic", got, wanted, torch.zeros(64, 48, dtype=torch.bool))


def authors_ties(deltas, density):
    """The rule in the authors' words: rows of flat models, k-th smallest as threshold, majority for zero sums."""
    flat = np.stack([delta.numpy().reshape(-1) for delta in deltas])
    size = flat.shape[1]
    rank = size - int(size * density)
    threshold = np.sort(np.abs(flat), axis=1)[:, rank - 1 : rank]
    trimmed = np.where(np.abs(flat) >= threshold, flat, np.float32(0))
    sign = np.sign(trimmed.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    agrees = np.where(sign > 0, trimmed > 0, trimmed < 0)
    number = agrees.sum(0)
    return (trimmed * agrees).sum(0) / np.maximum(number, 1), trimmed.sum(0) == 0


@pytest.mark.parametrize("shape", [(7,), (64, 48), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5])
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_ties_global_is_the_authors_rule(shape, density, rounded):
    deltas = make(shape, rounded=rounded)
    wanted, cancelled = authors_ties(deltas, density)
    got = merge_tensors("ties-global", deltas, base=torch.zeros(shape), density=density).numpy().reshape(-1)
    # Exact cancellation is the one difference that `ties-global` declares.
    np.testing.assert_array_equal(got[~cancelled], wanted[~cancelled].astype(np.float32))
    COUNTS["cases:ties-global"] += 1
    COUNTS["cancelled"] += int((cancelled & (got != wanted)).sum())
