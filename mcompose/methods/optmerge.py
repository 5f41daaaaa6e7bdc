"""OptMerge: the mean of the task vectors, moved a little towards the sources' leading parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mcompose.errors import NumericsError
from mcompose.methods.core.declare import Range, method
from mcompose.methods.core.interference import Aim, Aiming, Descent, Response
from mcompose.methods.core.singular import eigen, merge_matrices
from mcompose.methods.tsv import Share, kept_count

__all__ = ["optmerge"]


def _aiming(sources: int, share: float, *, low_rank: bool) -> Aiming:
    def aim(square: Any, longest: int) -> Aim:
        count = kept_count(share, size=square.shape[0], sources=sources)
        leading = eigen(square, longest=longest).largest(count).vectors
        return Aim(target=leading, measure=leading if low_rank else None)

    return aim


def _descended(steps: int, lr: float, momentum: float) -> Response:
    """What so many steps of SGD make of one direction: SGD on a quadratic is a recurrence for each eigenvalue."""

    def response(curvature: Any) -> Any:
        if lr * float(curvature.max()) >= 1.0 + momentum if curvature.shape[0] else False:
            raise NumericsError(
                f"The steps of 'optmerge' diverge with 'lr: {lr:g}' and 'momentum: {momentum:g}'.",
                hint="Choose a smaller 'lr'; 1e-4 is the default.",
            )
        moved, speed = curvature * 0.0, curvature * 0.0
        for _ in range(steps):
            speed = momentum * speed + 2.0 * (1.0 - curvature * moved)
            moved = moved + lr * speed
        return moved

    return response


@method("optmerge", title="OptMerge", paper="arXiv:2505.19892", space="deltas", base="required")
def optmerge(  # noqa: PLR0913 - what the descriptions of the method leave open is for the recipe to say
    deltas: Any,
    *,
    lambda_: float = 1.0,
    share: Share = 0.0,
    against: Literal["source", "low_rank"] = "low_rank",
    start: Literal["mean", "sum"] = "mean",
    steps: Annotated[int, Range(0)] = 300,
    lr: Annotated[float, Range(0.0)] = 1e-4,
    momentum: Annotated[float, Range(0.0, 0.999)] = 0.9,
) -> Any:
    """Descends from the mean of the deltas on sum_i ||(X - low-rank d_i) d_i^T||^2 / ||d_i||^2.

    Paper: OptMerge, arXiv:2505.19892: each of M sources is cut down to size // M singular vectors; the mean of the
        deltas is the start; SGD. Tensors that are no matrices are averaged.
    Differs: the steps of SGD are taken on eigenvalues, which gives the same point without iterating on matrices. The
        default is what all three releases do with full matrices of a language model, so what the published tables
        measure: leading parts stand for the inputs (``against: low_rank``), 300 steps, 1e-4, momentum 0.9. With the
        sources themselves (``against: source``) their code merges adapter factors: 5e-2, ``share: 0.2`` and 300 steps,
        which its only caller passes over the function's own 400; on a full matrix the two differ by up to 25 %. Not
        offered: its code for another model starts at the sum, cuts the difference from the mean, and steps by Adam.
        Singular values that are rounding bring no vector along. Code by the authors leaves the output head to the
        mean; here every matrix is merged, and a recipe's override chooses otherwise.

    Args:
        deltas: M float32 arrays of one shape (outputs, inputs), source minus base.
        lambda_: Factor of the merged delta.
        share: Share of the singular vectors that each source keeps; 0 stands for 1/M.
        against: What stands for the inputs of a source: its leading part (``low_rank``) or all of it (``source``).
        start: ``mean`` or ``sum``.
        steps: Steps of SGD.
        lr: Its learning rate.
        momentum: Its momentum.

    Returns:
        The merged delta.

    Raises:
        NumericsError: The learning rate is so large that the steps diverge.
    """
    descent = Descent(
        aiming=_aiming(len(deltas), share, low_rank=against == "low_rank"),
        response=_descended(steps, lr, momentum),
        start=1.0 / len(deltas) if start == "mean" else 1.0,
    )
    return merge_matrices(deltas, descent.merge, scale=lambda_)
