"""Model Stock: how far to trust the average of fine-tuned models, from the angles between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcompose.methods.core.blend import Blend, Groups, blend, cosines, gram
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import method

__all__ = ["model_stock"]


def _model_stock(matrix: np.ndarray, *, filter_wise: bool) -> Blend:
    count = matrix.shape[-1]
    first, second = np.triu_indices(count, 1)
    cosine = cosines(matrix)[..., first, second].mean(axis=-1)
    denominator = 1.0 + (count - 1) * cosine
    singular = np.abs(denominator) < 1e-6
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return Blend(np.repeat(t[..., None] / count, count, axis=-1))


def _groups(*, filter_wise: bool) -> Groups:
    return "rows" if filter_wise else "all"


@method(
    "model_stock",
    title="Model Stock",
    paper="arXiv:2403.19522",
    space="deltas",
    base="required",
    min_sources=2,
    program=blend_program(_model_stock, deltas=True, groups=_groups),
)
def model_stock(deltas: Any, *, filter_wise: bool = False) -> Any:
    """Moves from the base towards the average: t * mean(d), t = N cos / (1 + (N - 1) cos).

    The closer the fine-tuned models agree in direction, the nearer to their average.

    Paper: Model Stock, arXiv:2403.19522, equation for N models.
    Differs: cos is the mean over all pairs; where the denominator vanishes the base stays, both as in mergekit.
        mergekit takes lengths below 1e-6 for that length; here only a zero delta has no direction.

    Args:
        deltas: N >= 2 float32 arrays of one shape, source minus base.
        filter_wise: Whether each row (last dimension) has its own t.

    Returns:
        The merged delta.
    """
    groups = _groups(filter_wise=filter_wise)
    decision = _model_stock(gram(deltas, groups=groups), filter_wise=filter_wise)
    return blend(deltas, decision, groups=groups)
