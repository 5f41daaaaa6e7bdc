"""Blend rules over chunks: at most one measuring pass for the Gram matrix, then one to pour.

Inner products are float64 sums whose order is fixed by the element's place in the tensor (see
`kernels.dot_lanes`), so every cut into chunks gives the same bytes. A row's matrix needs no pass of its
own: rows come whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from math import prod
from typing import Any

import numpy as np

from mcompose.methods import kernels
from mcompose.methods.blend import Blend, Groups
from mcompose.methods.method import Program, TensorTask

__all__ = ["PIECE", "blend_program", "pieces"]

PIECE = 32768
"""Elements that go through all kernels before the next ones are touched, so that they stay in the cache."""

Chunks = Sequence[np.ndarray]


def pieces(size: int) -> Iterator[slice]:
    """Cuts a chunk into slices that fit the cache."""
    for first in range(0, size, PIECE):
        yield slice(first, min(size, first + PIECE))


def blend_program(
    rule: Callable[..., Blend],
    *,
    measured: bool = True,
    deltas: bool = False,
    groups: Callable[..., Groups] | None = None,
) -> Callable[..., Program]:
    """Makes the program factory of a blend method.

    Args:
        rule: ``(gram, **arguments) -> Blend``; ``gram`` is None when nothing is measured.
        measured: Whether the rule needs the Gram matrix.
        deltas: Whether the sources count from the base.
        groups: Which groups the settings ask for; it takes the method's arguments.

    Returns:
        ``(task, **arguments) -> Program``.
    """

    def make(task: TensorTask, **arguments: Any) -> Program:
        kind: Groups = groups(**arguments) if groups else "all"
        from_base = deltas or task.has_base
        if not measured:
            return _Pour(rule(None, **arguments), from_base=from_base)
        if kind == "rows" and task.shape:
            return _RowBlend(rule, arguments, length=task.shape[-1], from_base=from_base)
        width = prod(task.shape[1:]) if kind == "columns" and task.shape else 0
        return _MeasuredBlend(rule, arguments, count=len(task.sources), width=width, from_base=from_base)

    return make


class _Pour:
    """A blend whose coefficients are known.

    Args:
        decision: The coefficients, shape (n,), or (columns, n).
        from_base: Whether the sources count from the base.
    """

    passes = 0
    chunk_multiple = 1

    def __init__(self, decision: Blend, *, from_base: bool) -> None:
        self.coefficients = np.ascontiguousarray(decision.coefficients.T, np.float32)
        self.divisor = np.float32(decision.divisor)
        self.scale = np.float32(decision.scale)
        self.from_base = from_base

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> None:
        """Has nothing to learn."""

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        """Pours one chunk."""
        for piece in pieces(out.size):
            cut = [source[piece] for source in sources]
            origin = base[piece] if self.from_base and base is not None else None
            if self.coefficients.ndim == 1:
                self._pour(cut, origin, out[piece])
            else:
                self._pour_columns(start + piece.start, cut, origin, out[piece])
            self._finish(origin, out[piece])

    def _pour(self, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        first = True
        for source, weight in zip(sources, self.coefficients, strict=True):
            if base is None:
                (kernels.scaled if first else kernels.axpy)(source, weight, out)
            else:
                (kernels.scaled_delta if first else kernels.axpy_delta)(source, base, weight, out)
            first = False

    def _pour_columns(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        out[:] = 0
        for source, weights in zip(sources, self.coefficients, strict=True):
            kernels.axpy_columns(source if base is None else source - base, weights, start, out)

    def _finish(self, base: np.ndarray | None, out: np.ndarray) -> None:
        if base is not None:
            kernels.add_base(base, self.divisor, self.scale, out)
            return
        if self.divisor != 1:
            np.divide(out, self.divisor, out=out)
        if self.scale != 1:
            np.multiply(out, self.scale, out=out)


class _MeasuredBlend:
    """A blend whose rule needs the Gram matrix of the tensor, or of each of its columns.

    Args:
        rule: See `blend_program`.
        arguments: The rule's keyword arguments.
        count: Number of sources.
        width: Number of columns; 0 for one matrix.
        from_base: Whether the sources count from the base.
    """

    passes = 1
    chunk_multiple = 1

    def __init__(
        self,
        rule: Callable[..., Blend],
        arguments: dict[str, Any],
        *,
        count: int,
        width: int,
        from_base: bool,
    ) -> None:
        self.rule = rule
        self.arguments = arguments
        self.count = count
        self.width = width
        self.from_base = from_base
        self.pairs = list(combinations_with_replacement(range(count), 2))
        self.lanes = [np.zeros(kernels.LANES) for _ in self.pairs]
        self.totals = [np.zeros(width or 1) for _ in self.pairs]
        self.pour: _Pour | None = None

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> None:
        """Adds one chunk to the inner products."""
        for piece in pieces(sources[0].size):
            cut = [source[piece] for source in sources]
            if self.from_base and base is not None:
                cut = [source - base[piece] for source in cut]
            for pair, (i, j) in enumerate(self.pairs):
                if self.width:
                    kernels.column_dots(cut[i], cut[j], start + piece.start, self.totals[pair])
                else:
                    place = start + piece.start
                    kernels.dot_lanes(cut[i], cut[j], place, self.lanes[pair], self.totals[pair])

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        """Decides at the first chunk, then pours."""
        if self.pour is None:
            self.pour = _Pour(self.rule(self._gram(), **self.arguments), from_base=self.from_base)
        self.pour.combine(start, sources, base, out)

    def _gram(self) -> np.ndarray:
        matrix = np.zeros((self.width or 1, self.count, self.count))
        for pair, (i, j) in enumerate(self.pairs):
            left = 0.0
            for lane in self.lanes[pair]:
                left += lane
            matrix[:, i, j] = matrix[:, j, i] = self.totals[pair] + left
        return matrix if self.width else matrix[0]


class _RowBlend:
    """A blend with one decision a row: measured and poured in one pass.

    Args:
        rule: See `blend_program`.
        arguments: The rule's keyword arguments.
        length: Elements of a row.
        from_base: Whether the sources count from the base.
    """

    passes = 0

    def __init__(self, rule: Callable[..., Blend], arguments: dict[str, Any], *, length: int, from_base: bool) -> None:
        self.rule = rule
        self.arguments = arguments
        self.length = length
        self.chunk_multiple = max(1, length)
        self.from_base = from_base

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> None:
        """Has nothing to learn: rows come whole."""

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> None:
        """Decides and pours whole rows."""
        origin = base if self.from_base else None
        cut = sources if origin is None else [source - origin for source in sources]
        rows, count = out.size // self.chunk_multiple, len(sources)
        matrix = np.zeros((rows, count, count))
        sums = np.zeros(rows)
        for i, j in combinations_with_replacement(range(count), 2):
            kernels.row_dots(cut[i], cut[j], self.length, sums)
            matrix[:, i, j] = matrix[:, j, i] = sums
        weights = self.rule(matrix, **self.arguments).coefficients.astype(np.float32)
        out[:] = 0
        for index, source in enumerate(cut):
            kernels.axpy_rows(source, np.ascontiguousarray(weights[:, index]), self.length, out)
        if origin is not None:
            np.add(origin, out, out=out)
