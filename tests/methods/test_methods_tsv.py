"""TSV-Merge and Iso-C against textbook decompositions, and against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mcompose.methods import merge_tensors

SHAPES = [(24, 24), (20, 45), (45, 20)]


def merged(name, deltas, **parameters):
    """The merged delta: the base is zero."""
    deltas = [np.asarray(delta, np.float32) for delta in deltas]
    return merge_tensors(name, deltas, base=np.zeros_like(deltas[0]), **parameters)


def make_deltas(shape, count=3, *, seed=0):
    """Spectra that fall off, as those of fine-tunes do, with a shared part."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal(shape)
    decay = np.geomspace(1, 1e-2, shape[1])
    return [
        ((shared + generator.standard_normal(shape)) * decay[generator.permutation(shape[1])] * 0.01).astype(np.float32)
        for _ in range(count)
    ]


def polar(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def tsv_by_svd(deltas, count):
    """The paper's formula, word for word, by whole decompositions in float64."""
    parts = [np.linalg.svd(delta.astype(np.float64), full_matrices=False) for delta in deltas]
    left = np.concatenate([u[:, :count] for u, _, _ in parts], axis=1)
    lengths = np.concatenate([s[:count] for _, s, _ in parts])
    right = np.concatenate([v[:count] for _, _, v in parts])
    return polar(left) * lengths @ polar(right)


def assert_near(actual, wanted, share=2e-6):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tsv_is_the_papers_formula(shape, count):
    deltas = make_deltas(shape, count)
    assert_near(merged("tsv", deltas), tsv_by_svd(deltas, min(shape) // count))


def test_tsv_keeps_the_share_that_is_asked_for():
    deltas = make_deltas((20, 45))
    assert_near(merged("tsv", deltas, share=0.2), tsv_by_svd(deltas, 4))


def test_tsv_that_keeps_everything_has_more_vectors_than_rows():
    # The authors' lossless variant: the polar factor of a matrix that is wider than high.
    deltas = make_deltas((8, 45))
    assert_near(merged("tsv", deltas, share=1.0), tsv_by_svd(deltas, 8))


def test_tsv_of_sources_that_share_nothing_is_their_sum():
    deltas = np.zeros((2, 2, 3), np.float32)
    deltas[0, 0, 2], deltas[1, 1, 0] = 3, -2
    np.testing.assert_allclose(merged("tsv", deltas), [[0, 0, 3], [-2, 0, 0]], atol=1e-6)


def test_tsv_turns_two_directions_apart_by_the_same_angle():
    # 60 degrees apart: each turns by 15 until they are at right angles; values and right vectors stay.
    angle = np.radians(60)
    first, second = np.zeros((2, 2)), np.zeros((2, 2))
    first[:, 0], second[:, 1] = (3, 0), (2 * np.cos(angle), 2 * np.sin(angle))
    wanted = np.transpose(
        [
            [3 * np.cos(np.radians(-15)), 3 * np.sin(np.radians(-15))],
            [2 * np.cos(np.radians(75)), 2 * np.sin(np.radians(75))],
        ]
    )
    np.testing.assert_allclose(merged("tsv", [first, second]), wanted, rtol=1e-6)


def test_tsv_of_equal_sources_is_their_leading_part_once():
    # Vectors that coincide have no nearest orthonormal pair; the space that they span is what counts.
    delta = make_deltas((12, 18), 1)[0]
    u, s, v = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    assert_near(merged("tsv", [delta, delta, delta]), u[:, :4] * s[:4] @ v[:4])


def test_tsv_does_not_let_a_source_without_a_change_disturb_the_others():
    # A matrix of zeros has singular vectors too, and they are arbitrary.
    deltas = make_deltas((12, 18), 2)
    three = merged("tsv", [*deltas, np.zeros((12, 18))], share=0.25)
    assert_near(three, merged("tsv", deltas, share=0.25))


def test_tsv_of_low_rank_sources_uses_no_rounding_noise():
    generator = np.random.default_rng(3)
    base = generator.standard_normal((64, 96)).astype(np.float32)
    exact = [generator.standard_normal((64, 2)) @ generator.standard_normal((2, 96)) * 0.1 for _ in range(2)]
    sources = [np.float32(base + delta) for delta in exact]  # as an adapter that was folded in
    result = merge_tensors("tsv", sources, base=base) - base
    assert_near(result, tsv_by_svd([np.float32(delta) for delta in exact], 2), 1e-5)


def test_iso_c_of_a_diagonal():
    deltas = [np.diag([4.0, 0.0]), np.diag([0.0, -2.0])]
    np.testing.assert_allclose(merged("iso-c", deltas), np.diag([3.0, -3.0]), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iso_c_is_the_papers_formula(shape):
    deltas = make_deltas(shape)
    total = np.sum(deltas, axis=0, dtype=np.float64)
    lengths = np.linalg.svd(total, compute_uv=False)
    assert_near(merged("iso-c", deltas), lengths.mean() * polar(total), 1e-5)
    assert_near(merged("iso-c", deltas, lambda_=0.3), 0.3 * lengths.mean() * polar(total), 1e-5)


def test_iso_c_keeps_rank_and_nuclear_norm_of_sources_of_low_rank():
    generator = np.random.default_rng(5)
    deltas = [generator.standard_normal((30, 1)) @ generator.standard_normal((1, 40)) for _ in range(3)]
    lengths = np.linalg.svd(merged("iso-c", deltas).astype(np.float64), compute_uv=False)
    wanted = np.linalg.svd(np.sum(deltas, axis=0), compute_uv=False)[:3].sum() / 3
    np.testing.assert_allclose(lengths[:3], wanted, rtol=1e-5)
    assert lengths[3] < 1e-5 * wanted


def test_iso_c_of_sources_that_cancel_is_nothing():
    delta = make_deltas((6, 8), 1)[0]
    assert not merged("iso-c", [delta, -delta]).any()


@pytest.mark.parametrize("name", ["tsv", "iso-c"])
@pytest.mark.parametrize("shape", [(7,), (), (3, 4, 5)], ids=str)
def test_what_is_no_matrix_is_averaged(name, shape):
    deltas = [np.full(shape, value, np.float32) for value in (1, 2, 6)]
    np.testing.assert_allclose(merged(name, deltas, lambda_=0.5), np.full(shape, 1.5), rtol=1e-7)


@pytest.mark.parametrize("name", ["tsv", "iso-c"])
def test_turning_the_space_turns_the_result(name):
    # Signs and rotations of singular vectors, which no decomposition defines, would show here.
    generator = np.random.default_rng(1)
    deltas = make_deltas((20, 30))
    left, right = (np.linalg.qr(generator.standard_normal((size, size)))[0] for size in (20, 30))
    turned = merged(name, [left @ delta.astype(np.float64) @ right for delta in deltas])
    assert_near(turned, left @ merged(name, deltas).astype(np.float64) @ right, 2e-5)
    assert_near(merged(name, [-8 * delta for delta in deltas]), -8 * merged(name, deltas))
    assert_near(merged(name, [delta.T for delta in deltas]), merged(name, deltas).T)
