"""SWUDI and ASWUDI: WUDI's descent in closed form, along the input directions that the sources use most."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Annotated, Any, Literal

import numpy as np

from mcompose.methods.core.arrays import to_numpy
from mcompose.methods.core.declare import Range, method
from mcompose.methods.core.interference import Descent, Response, everything
from mcompose.methods.core.singular import library, merge_matrices

__all__ = ["aswudi", "swudi"]

FLOOR = 1e-8
"""Smallest eigenvalue that the authors' code counts with; they count one for every input."""

Start = Literal["sum", "mean", "zero"]
"""Multiple of the sum of the deltas that the descent starts from."""

RankRule = Literal["participation_sqrt", "gavish_donoho", "stable_rank", "entropy", "participation"]
"""How the number of directions follows from the eigenvalues; the names are those of the authors' code."""

Count = Callable[[Any], int]
"""Number of directions to keep, from the eigenvalues (smallest first) that are more than rounding."""


def _descend(deltas: Any, count: Count, moved: Response, *, start: Start, scale: float) -> Any:
    """Descends along the leading directions alone; ``moved`` is the share of the way to the minimum that is taken."""

    def response(curvature: Any) -> Any:
        weights = library(curvature).ones_like(curvature)
        weights[: max(0, int(curvature.shape[0]) - count(curvature))] = 0.0
        return weights * moved(curvature) / curvature

    factor = {"sum": 1.0, "mean": 1.0 / len(deltas), "zero": 0.0}[start]
    return merge_matrices(deltas, Descent(everything, response, factor).merge, scale=scale)


@method("swudi", title="SWUDI (spectral WUDI)", paper="arXiv:2606.07289", space="deltas", base="required")
def swudi(
    deltas: Any,
    *,
    lambda_: float = 1.0,
    time: Annotated[float, Range(0.0)] = 300.0,
    keep: Annotated[float, Range(0.0, 1.0)] = 0.65,
    start: Start = "sum",
) -> Any:
    """Descends on WUDI's loss for a time, along the strongest input directions: X_0 + (D - X_0 C) V_k h(c) V_k^T.

    C = sum_i d_i^T d_i / |d_i|^2 = V diag(c) V^T, D = sum_i d_i d_i^T d_i / |d_i|^2 and h(c) = (1 - exp(-c time)) / c:
    where steepest descent is after ``time``. Directions beyond the leading ones stay at X_0.

    Paper: SWUDI, arXiv:2606.07289: 300 and 0.65 in the authors' code, 0.85 for full deltas of a language model. From
        the sum of M deltas the result is about M times one of them, so they scale it: ``lambda`` 0.2 with ``time`` 1300
        for five Qwen2-VL sources, 0.1 with 300 for InternVL2.5. Tensors that are no matrices are averaged.
    Differs: float64, and eigenvalues that are rounding (`rank_floor`) stay at X_0; theirs are float32, where small ones
        are set to 1e-8. Their code leaves embeddings, norms, biases, the output head and the image tower to the base;
        here every matrix is merged, and a recipe's override chooses otherwise.

    Args:
        deltas: M float32 arrays of one shape (outputs, inputs), source minus base.
        lambda_: Factor of the merged delta (their ``scaling_coefficient``).
        time: How long to descend (their ``exp_time``).
        keep: Share of the input directions that is descended along (their ``truncate_rank_ratio``), at least one.
        start: X_0: ``sum``, ``mean`` or ``zero`` (their ``init_mode``).

    Returns:
        The merged delta.
    """
    inputs = int(deltas[0].shape[-1]) if deltas[0].ndim else 1
    # Their rounding: up, but for a remainder under a thousandth.
    kept = max(1, int(inputs * keep + 0.999))

    def moved(curvature: Any) -> Any:
        return -library(curvature).expm1(-curvature * time)

    return _descend(deltas, lambda _: kept, moved, start=start, scale=lambda_)


@method("aswudi", title="ASWUDI (adaptive SWUDI)", paper="arXiv:2606.07289", space="deltas", base="required")
def aswudi(deltas: Any, *, lambda_: float = 1.0, rank: RankRule = "participation_sqrt", start: Start = "sum") -> Any:
    """Goes to WUDI's minimum along as many input directions as the sources' own spectrum says.

    Paper: ASWUDI, arXiv:2606.07289: SWUDI without a time, its number of directions from a rule for each matrix, which
        leaves nothing to tune. The authors' code recommends ``gavish_donoho`` for full deltas of a language model.
        Tensors that are no matrices are averaged.
    Differs: as `swudi` does. Of the rules in their code, those with a number of their own are not offered.

    Args:
        deltas: M float32 arrays of one shape (outputs, inputs), source minus base.
        lambda_: Factor of the merged delta.
        rank: Rule for the number of directions.
        start: X_0: ``sum``, ``mean`` or ``zero``.

    Returns:
        The merged delta.
    """
    shape = tuple(int(size) for size in deltas[0].shape)

    def count(curvature: Any) -> int:
        return _adaptive_rank(to_numpy(curvature), shape, rank)

    return _descend(deltas, count, lambda curvature: curvature * 0.0 + 1.0, start=start, scale=lambda_)


def _adaptive_rank(curvature: np.ndarray, shape: tuple[int, ...], rule: RankRule) -> int:
    """Number of directions: a rule on the eigenvalues of all inputs, of which those not given are `FLOOR`."""
    values = np.full(shape[1], FLOOR)
    values[shape[1] - len(curvature) :] = np.maximum(curvature, FLOOR)
    roots = np.sqrt(values)
    if rule == "gavish_donoho":
        return max(1, int((roots > _noise_edge(shape) * roots[(len(roots) - 1) // 2]).sum()))
    if rule == "entropy":
        shares = values / values.sum()
        return ceil(np.exp(-(shares * np.log(shares)).sum()))
    if rule == "stable_rank":
        return ceil((values**2).sum() / values[-1] ** 2)
    spread = roots if rule == "participation_sqrt" else values
    return ceil(spread.sum() ** 2 / (spread**2).sum())


def _noise_edge(shape: tuple[int, ...]) -> float:
    """Singular value, over their median, from which on the authors' code takes a direction for more than noise.

    It is the optimal threshold of Gavish and Donoho (arXiv:1305.5870) for a matrix of this shape, over an approximation
    of the median of the Marchenko-Pastur law that is the authors' own.
    """
    ratio = min(shape) / max(shape)
    edge = sqrt(2 * (ratio + 1) + 8 * ratio / ((ratio + 1) + sqrt(ratio**2 + 14 * ratio + 1)))
    median = sqrt((1 - ratio) ** 2 + ratio) if ratio < 0.9999 else sqrt(2 + sqrt(3.0))
    return edge / median
