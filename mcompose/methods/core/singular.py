"""What the methods on singular vectors share: matrices seen through the Gram matrices of their short side.

The idea: with A = U S V^T, everything that these methods build (U_k U_k^T A, U V^T A^T ..., a whitened sum) is a small
square matrix times the sources. The small matrix follows from the products A_i A_j^T, which are as large as the short
side of the tensor. So no long factor is ever held, the large tensors are walked through twice, a few columns at a time,
and the sign of a singular vector, which no decomposition defines, cancels before it can reach a result.

All sums are float64. A Gram matrix squares the singular values, and float64 holds the squares of all that float32
inputs can tell apart (`rank_floor`); smaller ones are rounding, their directions are arbitrary, and they are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import OpenBLASController, ThreadpoolController

from mcompose.methods.core.arrays import doubles, is_numpy, singles

__all__ = ["Eigen", "average", "combine", "eigen", "library", "merge_matrices", "products", "rank_floor", "wide"]

COLUMNS = 1024
"""Columns that are widened to float64 at a time."""

EPSILON = float(np.finfo(np.float32).eps)

Solve = Callable[[Sequence[Any], float], Any]
"""Merges matrices: ``(deltas, scale) -> merged delta``, float32."""


class OneBlasThread:
    """Holds numpy's linear algebra to one thread while at least one thread is inside; a context manager.

    BLAS and LAPACK cut their sums differently for every number of threads, so the last bits of a product or of an
    eigenvector depend on it, and the bytes of a merge must not. One thread also is the faster choice here: the engine
    already merges several tensors at once. Only OpenBLAS, which numpy's own packages bring, is held; with another BLAS
    the number must be held from outside (``MKL_NUM_THREADS=1``).

    OpenBLAS has one number for the whole process: the first to enter sets it and the last to leave gives it back. To
    threadpoolctl the number belongs to the thread that set it first, and requests of others are dropped without a word;
    so it is taken from whoever has it, and let go at the end.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                OpenBLASController.clear_controlling_thread(force=True)
                self._limits = _openblas().limit(limits=1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                OpenBLASController.clear_controlling_thread(force=True)
                self._limits.restore_original_limits()
                OpenBLASController.clear_controlling_thread()


ONE_BLAS_THREAD = OneBlasThread()


@cache
def _openblas() -> ThreadpoolController:
    """The OpenBLAS libraries that are loaded; numpy's is, once it is imported."""
    return ThreadpoolController().select(internal_api="openblas")


@dataclass(frozen=True)
class Eigen:
    """The part of a symmetric, non-negative matrix that is more than rounding.

    Args:
        values: Eigenvalues from the smallest up, shape (rank,).
        vectors: Their vectors as columns, shape (size, rank).
    """

    values: Any
    vectors: Any

    def largest(self, count: int) -> Eigen:
        """Keeps the largest ``count``."""
        first = max(0, int(self.values.shape[0]) - count)
        return Eigen(self.values[first:], self.vectors[:, first:])

    def function(self, values: Any) -> Any:
        """Builds Q diag(values) Q^T."""
        return (self.vectors * values) @ self.vectors.T


def library(array: Any) -> ModuleType:
    """Numpy or torch, for the functions that both spell alike."""
    if is_numpy(array):
        return np
    import torch  # noqa: PLC0415 - costs seconds, and only who holds a tensor of torch's needs it

    return torch


def merge_matrices(deltas: Sequence[Any], solve: Solve, *, scale: float) -> Any:
    """Merges matrices by ``solve``, and tensors of other shapes by their mean.

    Args:
        deltas: M float32 arrays of one shape.
        solve: What to do with matrices that are finite.
        scale: Factor of the result (the recipe's ``lambda``).

    Returns:
        The merged delta, float32. A tensor that is not finite gives its mean, which shows the engine where.
    """
    first = deltas[0]
    if first.ndim != 2 or 0 in first.shape or not all(bool(_finite(delta)) for delta in deltas):
        return average(deltas, scale=scale)
    with ONE_BLAS_THREAD:
        return solve(deltas, scale)


def average(deltas: Sequence[Any], *, scale: float) -> Any:
    """Averages arrays of any shape: scale * sum_i d_i / M."""
    total = doubles(deltas[0])
    for delta in deltas[1:]:
        total = total + doubles(delta)
    return singles(total * (scale / len(deltas)))


def wide(deltas: Sequence[Any]) -> tuple[list[Any], bool]:
    """Lays matrices so that they have no more rows than columns.

    Returns:
        Views of them, and whether they were turned; square ones are, which `interference` has least to do with.
    """
    turned = deltas[0].shape[0] >= deltas[0].shape[1]
    return [delta.T if turned else delta for delta in deltas], turned


def products(left: Sequence[Any], right: Sequence[Any]) -> Any:
    """Multiplies A B^T in float64, where A and B are sums of matrices of one shape.

    Args:
        left: The terms of A, float32, shape (m, n), with long rows.
        right: The terms of B.

    Returns:
        Float64, shape (m, m).
    """
    total: Any = 0.0
    for start in range(0, left[0].shape[1], COLUMNS):
        columns = _columns(left, start)
        total += columns @ (columns if right is left else _columns(right, start)).T
    return total


def combine(factors: Sequence[Any], matrices: Sequence[Any], *, turned: bool) -> Any:
    """Adds the products F_i A_i, a few columns at a time, and rounds once.

    Args:
        factors: M float64 matrices, shape (m, m); a single one multiplies the sum of all.
        matrices: M float32 matrices, shape (m, n), from `wide`.
        turned: Whether they were turned: the result is turned back.

    Returns:
        Float32, of the shape that the sources had.
    """
    groups = [matrices] if len(factors) == 1 else [[matrix] for matrix in matrices]
    whole = library(matrices[0]).zeros_like(matrices[0])
    for start in range(0, whole.shape[1], COLUMNS):
        total: Any = 0.0
        for factor, group in zip(factors, groups, strict=True):
            total += factor @ _columns(group, start)
        whole[:, start : start + COLUMNS] = singles(total)
    return whole.T if turned else whole


def rank_floor(longest: int) -> float:
    """Largest singular value, as a share of the first, that float32 cannot tell from rounding.

    Rounding every element of a matrix by up to one part in 2^23, with random signs, moves its singular values by
    about this much.

    Args:
        longest: The long side of the matrix.
    """
    return EPSILON * longest**0.5


def eigen(gram: Any, *, longest: int) -> Eigen:
    """Decomposes a Gram matrix, without the directions that are rounding.

    Args:
        gram: Float64, symmetric, shape (m, m).
        longest: The long side of the matrices that it was made of.
    """
    values, vectors = library(gram).linalg.eigh(gram)
    floor = max(float(values[-1]), 0.0) * rank_floor(longest) ** 2
    return Eigen(values, vectors).largest(int((values > floor).sum()))


def _columns(matrices: Sequence[Any], start: int) -> Any:
    """A few columns of the sum of the matrices, in float64."""
    total = doubles(matrices[0][:, start : start + COLUMNS])
    for matrix in matrices[1:]:
        total = total + doubles(matrix[:, start : start + COLUMNS])
    return total


def _finite(delta: Any) -> Any:
    return library(delta).isfinite(delta).all()
