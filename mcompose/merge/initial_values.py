"""First values of tensors that no source has: the projector of a new expert, a router, the vectors around a block.

The idea: a value depends on (seed, name of the tensor, element) and nothing else, so a new tensor is made chunk by
chunk like a merged one, by any thread, and comes out the same. A ``created`` segment says in its parameters how:

- ``{"bound": b}``: uniform in [-b, b]; b = 1/sqrt(inputs) is what torch's own linear layers start from;
- ``{"fill": x}``: the same number everywhere (norms one, biases zero);
- ``{"rows": n}``: every row is the mean of the first n rows of the contribution, as new tokens start from the mean of
  the known ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcompose.checkpoint import encode
from mcompose.merge.job import Contribution, Segment, TensorJob
from mcompose.methods import address, uniforms_from

__all__ = ["RowMean", "first_values", "new_job", "start_of"]

_PURPOSE = "first values"
_QUERIES = 0.02 * math.sqrt(3)
"""Bound of the uniform draw with standard deviation 0.02."""


def start_of(name: str, shape: Sequence[int]) -> dict[str, float]:
    """How a parameter of a linear layer, a norm or a set of queries begins.

    Args:
        name: Its name.
        shape: Its shape.

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
    """A tensor that no source has, in float32.

    Args:
        name: Key in the output's files.
        shape: Its shape.
        part: For the ledger.
        seed: The recipe's.
        start: Parameters of its segment; default: by name and shape.
        table: Table whose mean row it begins with.
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


def first_values(
    job: TensorJob, segment: Segment, span: tuple[int, int], *, row: np.ndarray | None = None
) -> np.ndarray:
    """Values of some elements of a ``created`` segment, raw.

    Args:
        job: The tensor.
        segment: Its rows.
        span: First element, counted from the segment's, and number of elements.
        row: The mean row, float32, for ``rows``.
    """
    start, count = span
    how = segment.parameters
    if row is not None:
        values = row[np.arange(start, start + count) % row.size]
    elif "fill" in how:
        values = np.full(count, how["fill"], np.float32)
    else:
        key = address(segment.seed, _PURPOSE, job.address or job.name, str(segment.start))
        bound = np.float32(how["bound"])
        values = (2 * uniforms_from(key, start, count) - 1) * bound
    return encode(values.astype(np.float32, copy=False), job.dtype)


class RowMean:
    """Mean of rows that come in pieces, in float64.

    Args:
        width: Elements of a row.
    """

    def __init__(self, width: int) -> None:
        self._sum = np.zeros(width, np.float64)
        self._rows = 0

    def add(self, values: np.ndarray) -> None:
        """Takes whole rows, float32, one after the other."""
        rows = values.reshape(-1, self._sum.size)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._rows += len(rows)

    @property
    def value(self) -> np.ndarray:
        """The mean, float32."""
        return (self._sum / self._rows).astype(np.float32)
