"""Initial values of new tensors: the projector of a new expert, a router, the vectors around an expert's tokens.

A value depends only on the seed, the name of the tensor and the index of the element, so a new tensor can be made chunk
by chunk like a merged one, by any thread, with the same result. The parameters of a ``created`` segment are one of:

- ``{"bound": b}``: uniform in [-b, b]; torch's linear layers use b = 1/sqrt(inputs);
- ``{"between": (low, high)}``: uniform in [low, high];
- ``{"fill": x}``: one number for all elements (norms 1, biases 0);
- ``{"transposed": s}``: the contribution, a matrix, turned over and times s;
- ``{"rows": n}``: every row is the mean of the first n rows of the contribution, as for new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcompose.checkpoint import encode
from mcompose.merge.job import Contribution, Segment, TensorJob
from mcompose.methods import address, uniforms_from

__all__ = ["RowMean", "initial_values", "new_job", "start_of"]

_PURPOSE = "first values"
_QUERIES = 0.02 * math.sqrt(3)
"""Bound of the uniform draw with standard deviation 0.02."""


def start_of(name: str, shape: Sequence[int]) -> dict[str, float]:
    """Returns the initialisation of a parameter of a linear layer, a norm or a set of queries.

    Args:
        name: Name of the parameter.
        shape: Shape of the parameter.

    Returns:
        Parameters of a ``created`` segment.
    """
    if len(shape) < 2:
        return {"fill": 0.0 if name.endswith("bias") else 1.0}
    if name.endswith("queries"):
        return {"bound": _QUERIES}
    return {"bound": 1 / math.sqrt(math.prod(shape[1:]))}


def new_job(
    name: str,
    shape: Sequence[int],
    part: str,
    *,
    seed: int,
    start: Mapping[str, Any] | None = None,
    table: Contribution | None = None,
) -> TensorJob:
    """Returns the job of a new float32 tensor, which no source has.

    Args:
        name: Key in the output's files.
        shape: Shape of the tensor.
        part: Part of the model, for the ledger.
        seed: Seed of the recipe.
        start: Parameters of its segment; default: ``start_of`` name and shape.
        table: Table whose mean row is the initial value of every row.
    """
    start = dict(start_of(name, shape) if start is None else start)
    contributions = () if table is None else (table,)
    rows = shape[0] if shape else 1
    segment = Segment(0, rows, "created", contributions, parameters=start, seed=seed)
    return TensorJob(name, part, None, "F32", tuple(shape), (segment,), note=_note(start))


def _note(start: Mapping[str, Any]) -> str:
    if "rows" in start:
        return f"new: mean of {start['rows']} rows"
    return f"new: filled with {start['fill']:g}" if "fill" in start else "new: drawn by the seed"


def initial_values(
    job: TensorJob, segment: Segment, span: tuple[int, int], *, row: np.ndarray | None = None
) -> np.ndarray:
    """Computes raw values of some elements of a ``created`` segment.

    Args:
        job: Job of the tensor.
        segment: Segment of the job.
        span: First element, from the start of the segment, and number of elements.
        row: Mean row in float32, for ``{"rows": n}``.
    """
    start, count = span
    how = segment.parameters
    if row is not None:
        values = row[np.arange(start, start + count) % row.size]
    elif "fill" in how:
        values = np.full(count, how["fill"], np.float32)
    else:
        key = address(segment.seed, _PURPOSE, job.address or job.name, str(segment.start))
        drawn = uniforms_from(key, start, count)
        if "between" in how:
            low, high = (np.float32(end) for end in how["between"])
            values = low + drawn * (high - low)
        else:
            values = (2 * drawn - 1) * np.float32(how["bound"])
    return encode(values.astype(np.float32, copy=False), job.dtype)


class RowMean:
    """Mean of rows that are added in pieces, computed in float64.

    Args:
        width: Number of elements of a row.
    """

    def __init__(self, width: int) -> None:
        self._sum = np.zeros(width, np.float64)
        self._rows = 0

    def add(self, values: np.ndarray) -> None:
        """Adds complete float32 rows."""
        rows = values.reshape(-1, self._sum.size)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._rows += len(rows)

    @property
    def value(self) -> np.ndarray:
        """The mean in float32."""
        return (self._sum / self._rows).astype(np.float32)
