"""SSAM against its formula by whole decompositions, and against projections done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mcompose.methods import merge_tensors


def merged(deltas, **parameters):
    """The merged delta: the base is zero."""
    deltas = [np.asarray(delta, np.float32) for delta in deltas]
    return merge_tensors("ssam", deltas, base=np.zeros_like(deltas[0]), **parameters)


def by_formula(deltas, count):
    exact = [delta.astype(np.float64) for delta in deltas]
    _, left = np.linalg.eigh(sum(one @ one.T for one in exact))
    _, right = np.linalg.eigh(sum(one.T @ one for one in exact))
    left, right = left[:, -count:], right[:, -count:]
    return sum(left @ left.T @ one @ right @ right.T for one in exact)


@pytest.mark.parametrize("shape", [(24, 24), (9, 45), (45, 9), (20, 45)], ids=str)
@pytest.mark.parametrize(("share", "kept"), [(0.0, 1 / 3), (0.5, 0.5), (1.0, 1.0)])
def test_ssam_is_the_papers_formula(shape, share, kept):
    generator = np.random.default_rng(0)
    shared = generator.standard_normal(shape)
    deltas = [np.float32((shared + generator.standard_normal(shape)) * 0.01) for _ in range(3)]
    wanted = 0.7 * by_formula(deltas, int(min(shape) * kept))
    found = merged(deltas, share=share, lambda_=0.7)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_ssam_drops_what_only_a_weak_source_uses():
    # The sums are diag(9 + 4, 1) and diag(9 + 4, 1): one of two directions is kept on either side.
    deltas = [np.diag([3.0, 0.0]), np.array([[2.0, 0.0], [0.0, 1.0]])]
    np.testing.assert_allclose(merged(deltas), [[5, 0], [0, 0]], atol=1e-6)


def test_ssam_of_tensors_of_other_shapes_is_their_mean():
    np.testing.assert_allclose(merged([np.full(7, 1.0), np.full(7, 3.0)]), np.full(7, 2.0))
