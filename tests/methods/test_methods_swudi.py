"""SWUDI and ASWUDI against the formulas of the authors' code, written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mcompose.methods import merge_tensors

SHAPES = [(12, 12), (10, 35), (35, 10)]


def merged(name, deltas, **parameters):
    """The merged delta: the base is zero."""
    return merge_tensors(name, deltas, base=np.zeros_like(deltas[0]), **parameters)


def make_deltas(shape, count=3, *, seed=0):
    """Spectra that fall off, as those of fine-tunes do, with a shared part."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal(shape)
    decay = np.geomspace(1, 3e-2, shape[1])
    return [np.float32((shared + generator.standard_normal(shape)) * decay * 0.01) for _ in range(count)]


def authors(deltas, filter_of, start="sum"):
    """Their closed form: the filter is a function of the eigenvalues from the largest down."""
    stack = torch.from_numpy(np.stack(deltas)).double()
    norms = stack.square().sum((1, 2))
    grams = torch.einsum("nab,nac->nbc", stack, stack) / norms[:, None, None]
    wanted = torch.einsum("nab,nbc->ac", stack, grams)
    values, vectors = torch.linalg.eigh(grams.sum(0))
    values = values.clamp(min=1e-8)
    shares = filter_of(values.flip(0)).flip(0)
    first = {"sum": stack.sum(0), "mean": stack.mean(0), "zero": stack[0] * 0}[start]
    return (
        first - first @ vectors * shares @ vectors.T + wanted @ vectors * (shares / values) @ vectors.T
    ).numpy()  # fmt: skip


def leading(values, count):
    return (torch.arange(len(values)) < count).double()


def assert_near(actual, wanted, share=2e-6):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("start", ["sum", "mean", "zero"])
@pytest.mark.parametrize(("time", "keep"), [(300.0, 0.65), (1300.0, 0.85), (7.0, 1.0)])
def test_swudi_is_the_authors_closed_form(shape, start, time, keep):
    deltas = make_deltas(shape)
    count = max(1, int((shape[1] * keep + 0.999) // 1))
    wanted = authors(deltas, lambda c: (1 - torch.exp(-c * time)) * leading(c, count), start)
    # A direction of an eigenvalue that is rounding moves nothing here, and by 1e-8 of itself there.
    assert_near(merged("swudi", deltas, time=time, keep=keep, start=start), wanted, 2e-5)


def gavish_donoho(values, shape):
    beta = min(shape) / max(shape)
    coefficient = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta * beta + 14 * beta + 1)))
    middle = math.sqrt((1 - beta) ** 2 + beta) if beta < 0.9999 else math.sqrt(2 + math.sqrt(3))
    roots = values.sqrt()
    return max(1, int((roots > coefficient / middle * roots.median()).sum()))


RULES = {
    "participation_sqrt": lambda c, _: math.ceil(c.sqrt().sum() ** 2 / c.sum()),
    "participation": lambda c, _: math.ceil(c.sum() ** 2 / c.square().sum()),
    "stable_rank": lambda c, _: math.ceil(c.square().sum() / c[0] ** 2),
    "entropy": lambda c, _: math.ceil(math.exp(-(c / c.sum() * (c / c.sum()).log()).sum())),
    "gavish_donoho": gavish_donoho,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_aswudi_takes_the_rank_of_the_authors_rules(shape, rule):
    deltas = make_deltas(shape)
    wanted = authors(deltas, lambda c: leading(c, RULES[rule](c, shape)))
    assert_near(merged("aswudi", deltas, rank=rule), wanted, 2e-5)


def test_swudi_of_all_directions_and_all_time_is_wudis_minimum_and_of_no_time_the_sum():
    deltas = make_deltas((6, 20), 2)
    found = merged("swudi", deltas, time=1e12, keep=1.0)
    assert_near(found, merged("wudi", deltas, solver="closed"), 1e-5)
    assert_near(merged("swudi", deltas, time=0.0, lambda_=0.5), 0.5 * np.sum(deltas, axis=0))


def test_swudi_of_two_single_numbers_by_hand():
    # C = 2, D - X_0 C = 3 - 1 - 2 * 2 = -2 from the sum 2; after time t the way is -2 (1 - exp(-2 t)) / 2.
    found = merged("swudi", [np.float32([[3]]), np.float32([[-1]])], time=0.25)
    np.testing.assert_allclose(found, [[2 - (1 - math.exp(-0.5))]], rtol=1e-6)
