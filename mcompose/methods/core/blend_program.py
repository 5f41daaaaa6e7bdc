"""Blend rules over chunks: at most one measuring pass for the Gram matrices, then one that writes.

Inner products are float64 sums, tile by tile (see `loops.blending`); chunks start with a tile, so every cut into chunks
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from math import prod
from typing import Any

import numpy as np

from mcompose.methods.core import kernels
from mcompose.methods.core.blend import Blend, Groups
from mcompose.methods.core.loops.layout import TILE
from mcompose.methods.core.method import Program, TensorTask

__all__ = ["blend_program"]

Chunks = Sequence[np.ndarray]


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
            return _WeightedSum(rule(None, **arguments), from_base=from_base)
        if kind == "all" or not task.shape:
            return _Measured(rule, arguments, count=len(task.sources), from_base=from_base)
        length = task.shape[-1]
        stride, number = (length, prod(task.shape[:-1])) if kind == "rows" else (1, prod(task.shape[1:]))
        return _GroupMeasured(rule, arguments, stride=stride, shape=(len(task.sources), number), from_base=from_base)

    return make


class _WeightedSum:
    """A blend whose coefficients are known.

    Args:
        decision: The coefficients, shape (n,), or (groups, n).
        from_base: Whether the sources count from the base.
        stride: Elements from one group to the next.
    """

    passes = 0
    chunk_multiple = 1

    def __init__(self, decision: Blend, *, from_base: bool, stride: int = 1) -> None:
        self.coefficients = np.ascontiguousarray(decision.coefficients.T, np.float32)
        self.divisor, self.scale = decision.divisor, decision.scale
        self.from_base = from_base
        self.stride = stride

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> bool:
        """Does nothing: the coefficients are known."""
        return True

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> int:
        """Writes the weighted sum of one chunk."""
        origin = base if self.from_base else None
        if self.coefficients.ndim == 1:
            how = {"divisor": self.divisor, "scale": self.scale}
            return kernels.weighted_sum(sources, self.coefficients, out, base=origin, **how)
        return kernels.grouped_sum(sources, self.coefficients, out, start=start, stride=self.stride, base=origin)


class _Measured:
    """A blend whose rule needs the Gram matrix of the tensor.

    Args:
        rule: See `blend_program`.
        arguments: The rule's keyword arguments.
        count: Number of sources.
        from_base: Whether the sources count from the base.
    """

    passes = 1
    chunk_multiple = TILE

    def __init__(self, rule: Callable[..., Blend], arguments: dict[str, Any], *, count: int, from_base: bool) -> None:
        self.rule, self.arguments = rule, arguments
        self.from_base = from_base
        self.count = count
        self.totals = np.zeros(_pairs(count))
        self.total: _WeightedSum | None = None

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> bool:
        """Adds one chunk to the inner products."""
        kernels.gram(sources, self.totals, base=base if self.from_base else None)
        return bool(np.isfinite(self.totals).all())

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> int:
        """Applies the rule at the first chunk, then writes weighted sums."""
        if self.total is None:
            matrix = _matrix(self.totals[:, None], self.count)[0]
            self.total = _WeightedSum(self.rule(matrix, **self.arguments), from_base=self.from_base)
        return self.total.combine(start, sources, base, out)


class _GroupMeasured:
    """A blend whose rule needs a Gram matrix for each row, or for each column.

    Args:
        rule: See `blend_program`.
        arguments: The rule's keyword arguments.
        stride: Elements from one group to the next.
        shape: Number of sources and of groups.
        from_base: Whether the sources count from the base.
    """

    passes = 1
    chunk_multiple = 1

    def __init__(
        self,
        rule: Callable[..., Blend],
        arguments: dict[str, Any],
        *,
        stride: int,
        shape: tuple[int, int],
        from_base: bool,
    ) -> None:
        self.rule, self.arguments = rule, arguments
        self.stride = stride
        self.from_base = from_base
        self.count, groups = shape
        self.totals = np.zeros((_pairs(self.count), groups))
        self.total: _WeightedSum | None = None

    def measure(self, index: int, start: int, sources: Chunks, base: np.ndarray | None) -> bool:
        """Adds one chunk to the inner products."""
        origin = base if self.from_base else None
        kernels.group_gram(sources, self.totals, start=start, stride=self.stride, base=origin)
        return bool(np.isfinite(self.totals).all())

    def combine(self, start: int, sources: Chunks, base: np.ndarray | None, out: np.ndarray) -> int:
        """Applies the rule at the first chunk, then writes weighted sums."""
        if self.total is None:
            decision = self.rule(_matrix(self.totals, self.count), **self.arguments)
            self.total = _WeightedSum(decision, from_base=self.from_base, stride=self.stride)
        return self.total.combine(start, sources, base, out)


def _pairs(count: int) -> int:
    return count * (count + 1) // 2


def _matrix(products: np.ndarray, count: int) -> np.ndarray:
    """Products of all pairs, shape (pairs, groups), as matrices of shape (groups, n, n)."""
    matrix = np.zeros((products.shape[1], count, count))
    for pair, (i, j) in enumerate(combinations_with_replacement(range(count), 2)):
        matrix[:, i, j] = matrix[:, j, i] = products[pair]
    return matrix
