"""WUDI-Merging: the sum of the task vectors, moved so that it disturbs no source on that source's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from mcompose.methods.core.arrays import doubles, singles
from mcompose.methods.core.declare import Range, method
from mcompose.methods.core.interference import Descent, everything
from mcompose.methods.core.singular import merge_matrices, products

__all__ = ["wudi"]

MOMENTS = (0.9, 0.999)
"""Adam's memory of gradients and of their squares; its authors' values, which WUDI leaves alone."""

TINY = 1e-8
"""Adam's guard against division by zero."""


def _adam(deltas: Sequence[Any], scale: float, *, steps: int, lr: float) -> Any:
    """Adam on the loss of `interference`, in float64, for the way from the sum: X = sum_i d_i + way.

    Its steps keep their length however small the gradient is, so a gradient of zero must be exactly that.
    """
    start = doubles(deltas[0])
    for delta in deltas[1:]:
        start = start + doubles(delta)
    curvature, pull = _normal_equations(deltas, start)
    way, slow, fast = start * 0.0, start * 0.0, start * 0.0
    for step in range(1, steps + 1):
        gradient = way @ curvature
        gradient -= pull
        gradient *= 2.0
        slow *= MOMENTS[0]
        slow += gradient * (1.0 - MOMENTS[0])
        gradient *= gradient
        gradient *= 1.0 - MOMENTS[1]
        fast *= MOMENTS[1]
        fast += gradient
        width = (fast / (1.0 - MOMENTS[1] ** step)) ** 0.5
        width += TINY
        way -= slow / width * (lr / (1.0 - MOMENTS[0] ** step))
    return singles((start + way) * scale)


def _normal_equations(deltas: Sequence[Any], start: Any) -> tuple[Any, Any]:
    """C, and sum_i (d_i - start) d_i^T d_i / |d_i|^2, to which the way times C must come."""
    curvature: Any = 0.0
    pull: Any = 0.0
    for delta in deltas:
        inputs = products([delta.T], [delta.T])
        inputs /= float(inputs.trace()) or 1.0
        apart = doubles(delta) - start
        if delta.shape[0] < delta.shape[1]:
            pull += products([apart], [delta]) @ doubles(delta) / (float((doubles(delta) ** 2).sum()) or 1.0)
        else:
            pull += apart @ inputs
        curvature += inputs
    return curvature, pull


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
        The minimum is reported to do worse than a few hundred steps (arXiv:2606.07289): it follows directions that the
        sources hardly use as far as those that they depend on. `swudi` is the closed form that does not.
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
