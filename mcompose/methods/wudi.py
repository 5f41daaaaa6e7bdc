"""WUDI-Merging: the sum of the task vectors, moved so that it disturbs no source on that source's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from mcompose.methods.arrays import doubles, singles
from mcompose.methods.declare import Range, method
from mcompose.methods.interference import Descent, everything
from mcompose.methods.singular import merge_matrices, products

__all__ = ["wudi"]

MOMENTS = (0.9, 0.999)
"""Adam's memory of gradients and of their squares; its authors' values, which WUDI leaves alone."""

TINY = 1e-8
"""Adam's guard against division by zero."""


def _adam(deltas: Sequence[Any], scale: float, *, steps: int, lr: float) -> Any:
    """Adam on the loss of `interference`, in float64: its steps keep their length however small the gradient is."""
    curvature, wanted = 0.0, 0.0
    merged = doubles(deltas[0])
    for delta in deltas[1:]:
        merged = merged + doubles(delta)
    for delta in deltas:
        share = products([delta.T], [delta.T]) / (float((doubles(delta) ** 2).sum()) or 1.0)
        curvature = curvature + share
        wanted = wanted + doubles(delta) @ share
    slow, fast = merged * 0.0, merged * 0.0
    for step in range(1, steps + 1):
        gradient = merged @ curvature
        gradient -= wanted
        gradient *= 2.0
        slow *= MOMENTS[0]
        slow += gradient * (1.0 - MOMENTS[0])
        fast *= MOMENTS[1]
        gradient *= gradient
        gradient *= 1.0 - MOMENTS[1]
        fast += gradient
        width = (fast / (1.0 - MOMENTS[1] ** step)) ** 0.5
        width += TINY
        merged -= slow / width * (lr / (1.0 - MOMENTS[0] ** step))
    return singles(merged * scale)


@method("wudi", title="WUDI-Merging", paper="arXiv:2503.08099", space="deltas", base="required")
def wudi(
    deltas: Any,
    *,
    lambda_: float = 1.0,
    solver: Literal["gradient", "closed"] = "gradient",
    steps: Annotated[int, Range(0)] = 300,
    lr: Annotated[float, Range(0.0)] = 1e-5,
) -> Any:
    """Moves the sum of the deltas towards the least disturbance: argmin_X sum_i ||(X - d_i) d_i^T||^2 / ||d_i||^2.

    Paper: WUDI-Merging, arXiv:2503.08099: from the sum of the deltas, 300 steps of Adam with learning rate 1e-5.
        Tensors that are no matrices are averaged.
    Differs: ``solver: closed`` gives the minimum itself (of several, the one nearest to the sum); the paper stops on
        the way to a minimum, at a point that depends on the size of the deltas, since Adam's steps have a fixed length.
        The steps are taken in float64. Code by a common author leaves the output head to the mean; here every matrix
        is merged, and a recipe's override chooses otherwise. ``lambda`` is not the paper's.

    Args:
        deltas: M float32 arrays of one shape (outputs, inputs), source minus base.
        lambda_: Factor of the merged delta.
        solver: ``gradient``, 2 * steps * outputs * inputs^2 operations a tensor, or ``closed``, far fewer.
        steps: Steps of Adam.
        lr: Its learning rate.

    Returns:
        The merged delta.
    """
    if solver == "closed":
        least = Descent(aiming=everything, response=lambda curvature: 1.0 / curvature, start=1.0)
        return merge_matrices(deltas, least.merge, scale=lambda_)
    return merge_matrices(deltas, partial(_adam, steps=steps, lr=lr), scale=lambda_)
