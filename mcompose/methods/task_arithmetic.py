"""Task arithmetic: add the task vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcompose.methods.core.blend import Blend, blend
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import Weights, method
from mcompose.methods.core.prune import plain_divisor

__all__ = ["task_arithmetic"]


def _task_arithmetic(gram: None, *, weights: Weights, lambda_: float, normalize: bool) -> Blend:
    divisor = plain_divisor(weights, normalize=normalize)
    return Blend(np.asarray(weights), divisor=divisor, scale=lambda_)


@method(
    "task_arithmetic",
    title="Task arithmetic",
    paper="arXiv:2212.04089",
    space="deltas",
    base="required",
    program=blend_program(_task_arithmetic, measured=False, deltas=True),
    mergekit_ignored=("density", "rescale", "int8_mask"),
)
def task_arithmetic(deltas: Any, *, weights: Weights, lambda_: float = 1.0, normalize: bool = False) -> Any:
    """Adds the weighted deltas: lambda * sum_i w_i d_i (/ sum_i w_i).

    Paper: Editing models with task arithmetic, arXiv:2212.04089.
    Differs: one weight for each source. As in mergekit, weights that sum to zero are not normalised.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        lambda_: Factor of the merged delta.
        normalize: Whether to divide by the sum of the weights.

    Returns:
        The merged delta.
    """
    return blend(deltas, _task_arithmetic(None, weights=weights, lambda_=lambda_, normalize=normalize))
