"""WUDI-Merging and OptMerge against torch's own optimisers on the loss, and against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcompose.errors import NumericsError
from mcompose.methods import merge_tensors

SHAPES = [(12, 12), (10, 35), (35, 10)]


def merged(name, deltas, **parameters):
    """The merged delta: the base is zero."""
    deltas = [np.asarray(delta, np.float32) for delta in deltas]
    return merge_tensors(name, deltas, base=np.zeros_like(deltas[0]), **parameters)


def make_deltas(shape, count=3, *, seed=0, scale=0.01):
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal(shape)
    return [np.float32((shared + generator.standard_normal(shape)) * scale) for _ in range(count)]


def loss_of(merge, targets, measures, deltas):
    """The papers' loss: sum_i ||(X - T_i) A_i^T||^2 / ||d_i||^2."""
    return sum(
        ((merge - target) @ measure.T).square().sum() / delta.square().sum()
        for target, measure, delta in zip(targets, measures, deltas, strict=True)
    )


def optimised(optimiser, start, deltas, *, targets=None, measures=None, steps=300, **settings):
    """What a torch optimiser makes of the loss, by autograd, in float64."""
    merge = torch.nn.Parameter(start.clone())
    stepper = optimiser([merge], **settings)
    for _ in range(steps):
        stepper.zero_grad()
        loss_of(merge, targets or deltas, measures or deltas, deltas).backward()
        stepper.step()
    return merge.detach().numpy()


def doubles_of(deltas):
    return [torch.from_numpy(delta).double() for delta in deltas]


def leading(delta, count):
    u, s, v = np.linalg.svd(delta.numpy(), full_matrices=False)
    return torch.from_numpy(u[:, :count] * s[:count] @ v[:count])


def assert_near(actual, wanted, share=2e-6):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wudi_takes_adams_steps(shape):
    deltas = make_deltas(shape)
    exact = doubles_of(deltas)
    wanted = optimised(torch.optim.Adam, sum(exact), exact, lr=1e-5)
    assert_near(merged("wudi", deltas), wanted)
    moved = np.abs(merged("wudi", deltas) - sum(exact).numpy()).max()
    assert 1e-4 < moved < 300 * 2e-5, "300 steps of about 1e-5 lead that far"
    wanted = optimised(torch.optim.Adam, sum(exact), exact, steps=40, lr=1e-3)
    assert_near(merged("wudi", deltas, steps=40, lr=1e-3, lambda_=0.5), 0.5 * wanted)


def test_wudi_without_steps_is_the_sum():
    deltas = make_deltas((5, 9))
    assert_near(merged("wudi", deltas, steps=0), np.sum(deltas, axis=0))


@pytest.mark.parametrize("shape", [*SHAPES, (6, 50)], ids=str)
def test_wudis_minimum_solves_the_normal_equations_nearest_to_the_sum(shape):
    deltas = make_deltas(shape)
    exact = [delta.astype(np.float64) for delta in deltas]
    curvature = sum(delta.T @ delta / (delta**2).sum() for delta in exact)
    wanted = sum(delta @ delta.T @ delta / (delta**2).sum() for delta in exact)
    start = sum(exact)
    minimum = start + (wanted - start @ curvature) @ np.linalg.pinv(curvature, rcond=1e-10, hermitian=True)
    assert_near(merged("wudi", deltas, solver="closed"), minimum, 2e-5)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)], ids=str)
def test_wudis_steps_lead_to_its_minimum(shape):
    deltas = make_deltas(shape, 2, scale=1.0)
    exact = doubles_of(deltas)
    minimum = merged("wudi", deltas, solver="closed")
    results = [merged("wudi", deltas, steps=steps, lr=5e-3) for steps in (0, 100, 400, 1600, 6000)]
    losses = [float(loss_of(torch.from_numpy(result).double(), exact, exact, exact)) for result in results]
    least = float(loss_of(torch.from_numpy(minimum).double(), exact, exact, exact))
    assert losses == sorted(losses, reverse=True)
    assert least <= losses[-1] + 1e-12 * losses[0]
    assert losses[-1] - least < 1e-6 * (losses[0] - least)
    if shape == (40, 6):  # one minimum; where inputs outnumber what the sources say, Adam ends at another
        assert_near(results[-1], minimum, 1e-4)


def test_wudi_of_single_numbers_is_their_mean():
    # (x - a)^2 a^2 / a^2 + (x - b)^2 b^2 / b^2
    np.testing.assert_allclose(merged("wudi", [[[3.0]], [[-1.0]]], solver="closed"), [[1.0]], rtol=1e-6)


@pytest.mark.parametrize("solver", ["gradient", "closed"])
def test_wudi_of_sources_with_inputs_of_their_own_is_the_sum(solver):
    first, second = np.zeros((2, 3, 4))
    first[:, :2] = [[1, 2], [3, 4], [5, 7]]
    second[:, 2:] = [[-1, 1], [2, 0], [0, 4]]
    np.testing.assert_allclose(merged("wudi", [first, second], solver=solver), first + second, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("against", ["source", "low_rank"])
def test_optmerge_takes_sgds_steps(shape, against):
    deltas = make_deltas(shape)
    exact = doubles_of(deltas)
    targets = [leading(delta, min(shape) // 3) for delta in exact]
    measures = exact if against == "source" else targets
    settings = {"targets": targets, "measures": measures, "momentum": 0.9}
    wanted = optimised(torch.optim.SGD, sum(exact) / 3, exact, lr=1e-4, **settings)
    assert_near(merged("optmerge", deltas, against=against), wanted)
    wanted = optimised(torch.optim.SGD, sum(exact), exact, lr=5e-2, steps=400, **settings)
    found = merged("optmerge", deltas, against=against, start="sum", lr=5e-2, steps=400, lambda_=2.0)
    assert_near(found, 2 * wanted, 1e-5)


def test_optmerge_measured_by_the_leading_parts_knows_only_their_right_factors():
    # Released code writes the measure S V^T, without U: the loss is the same, since U has orthonormal columns.
    deltas = make_deltas((10, 35))
    exact = doubles_of(deltas)
    targets, rights = [leading(delta, 3) for delta in exact], []
    for delta in exact:
        _, s, v = np.linalg.svd(delta.numpy(), full_matrices=False)
        rights.append(torch.from_numpy(s[:3, None] * v[:3]))
    wanted = optimised(torch.optim.SGD, sum(exact) / 3, exact, targets=targets, measures=rights, momentum=0.9, lr=1e-2)
    assert_near(merged("optmerge", deltas, against="low_rank", lr=1e-2), wanted)


def test_optmerge_without_steps_is_the_mean_or_the_sum():
    deltas = make_deltas((5, 9))
    assert_near(merged("optmerge", deltas, steps=0), np.mean(deltas, axis=0))
    assert_near(merged("optmerge", deltas, steps=0, start="sum"), np.sum(deltas, axis=0))


def test_optmerge_that_keeps_everything_descends_to_wudis_minimum():
    deltas = make_deltas((6, 40), 2)
    found = merged("optmerge", deltas, share=1.0, against="source", start="sum", steps=20000, lr=0.1)
    assert_near(found, merged("wudi", deltas, solver="closed"), 1e-4)


def test_optmerge_of_two_single_numbers_by_hand():
    # Curvature 2, half the gradient at the mean 1 is 2 * 1 - (3 - 1) = 0: the mean is the minimum.
    np.testing.assert_allclose(merged("optmerge", [[[3.0]], [[-1.0]]]), [[1.0]], rtol=1e-6)
    # One step of 0.1 from the sum 2: the gradient is 2 * (2 * 2 - 2) = 4.
    found = merged("optmerge", [[[3.0]], [[-1.0]]], start="sum", steps=1, lr=0.1)
    np.testing.assert_allclose(found, [[1.6]], rtol=1e-6)


def test_optmerge_refuses_steps_that_diverge():
    with pytest.raises(NumericsError, match=r"diverge with 'lr: 50'"):
        merged("optmerge", make_deltas((4, 6)), lr=50.0)


LINEAR = [("optmerge", {"lr": 1e-2}), ("optmerge", {"against": "source", "lr": 1e-2}), ("wudi", {"solver": "closed"})]


@pytest.mark.parametrize(("name", "parameters"), LINEAR, ids=str)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)], ids=str)
def test_turning_or_scaling_the_sources_turns_or_scales_the_result(name, parameters, shape):
    generator = np.random.default_rng(1)
    deltas = make_deltas(shape)
    left, right = (np.linalg.qr(generator.standard_normal((size, size)))[0] for size in shape)
    turned = merged(name, [left @ delta.astype(np.float64) @ right for delta in deltas], **parameters)
    assert_near(turned, left @ merged(name, deltas, **parameters).astype(np.float64) @ right, 2e-5)
    assert_near(merged(name, [8 * delta for delta in deltas], **parameters), 8 * merged(name, deltas, **parameters))


def test_wudis_steps_scale_with_their_learning_rate():
    # Adam's steps have a fixed length: only sources and learning rate together scale the result.
    deltas = make_deltas((9, 14), scale=1.0)
    assert_near(merged("wudi", [8 * delta for delta in deltas], lr=8e-4), 8 * merged("wudi", deltas, lr=1e-4), 1e-5)


@pytest.mark.parametrize(("name", "parameters"), [*LINEAR, ("wudi", {})], ids=str)
def test_one_source_that_changed_gives_itself(name, parameters):
    delta = make_deltas((9, 14), 1)[0]
    assert_near(merged(name, [delta], **parameters), delta, 2e-7)
    if name == "wudi":  # it starts at the sum, which zeros leave alone
        assert_near(merged(name, [delta, np.zeros((9, 14))], **parameters), delta, 2e-7)


@pytest.mark.parametrize("name", ["wudi", "optmerge"])
def test_what_is_no_matrix_is_averaged(name):
    deltas = [np.full(7, value, np.float32) for value in (1, 2, 6)]
    np.testing.assert_allclose(merged(name, deltas, lambda_=0.5), np.full(7, 1.5), rtol=1e-7)
