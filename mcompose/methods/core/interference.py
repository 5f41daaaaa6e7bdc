"""How much a merged delta X disturbs its sources, and where gradient descent on that ends.

The loss is sum_i || (X - T_i) A_i^T ||^2 / || A_i ||^2: a source's own delta A_i stands for the inputs that it was
trained on, and on those X should do what T_i does (A_i itself, or its leading part). With C = sum_i A_i^T A_i / |A_i|^2
half the gradient is X C - D, so every method that follows it from X_0 in straight steps ends at X_0 + (D - X_0 C) h(C),
for a function h of numbers: 1/c for the minimum, a short recurrence for so many steps of SGD. Nothing needs to be
iterated on matrices.

X_0 is a multiple of the sum of the sources. Where the rows (the inputs) are the long side, C is large, but it is
R^T R, with R the measured sources below each other, and D - X_0 C is K R: then (D - X_0 C) h(C) = K h(R R^T) R, and K
and R R^T follow from the products A_i A_j^T of the short side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcompose.methods.core.singular import combine, eigen, library, products, wide

__all__ = ["Aim", "Aiming", "Descent", "everything"]

Response = Callable[[Any], Any]
"""h: eigenvalues of C, array in and array out."""


@dataclass(frozen=True)
class Aim:
    """What one source asks of the merge, said by singular vectors of its short side: orthonormal columns.

    Args:
        target: T_i is the source cut down to these directions; None for all of it.
        measure: So is A_i where it stands for the inputs; None for all of it.
    """

    target: Any
    measure: Any


Aiming = Callable[[Any, int], Aim]
"""Says what a source asks for, from its Gram matrix on the short side and the length of the long one."""


Pairs = Sequence[Sequence[Any]]
"""Products A_i A_j^T on the short side; row i holds those with j <= i, or only the last of them."""


@dataclass(frozen=True)
class Descent:
    """Where the gradient leads from a multiple of the sum of the sources.

    Args:
        aiming: What each source asks for.
        response: h.
        start: X_0 = start * sum_i A_i.
    """

    aiming: Aiming
    response: Response
    start: float

    def merge(self, deltas: Sequence[Any], scale: float) -> Any:
        """Merges float32 matrices of one shape (outputs, inputs) and rounds ``scale`` times the end point once."""
        matrices, turned = wide(deltas)
        pairs = _pairs(matrices, crossed=not turned)
        squares = [row[-1] for row in pairs]
        aims = [self.aiming(square, matrices[0].shape[1]) for square in squares]
        follow = self._from_inputs if turned else self._from_outputs
        changes = follow(pairs, aims, longest=matrices[0].shape[1])
        stay = _diagonal(squares[0], self.start)
        return combine([(stay + change) * scale for change in changes], matrices, turned=turned)

    def _from_inputs(self, pairs: Pairs, aims: Sequence[Aim], *, longest: int) -> list[Any]:
        """F_i of X - X_0 = sum_i A_i F_i^T, where the rows (the inputs) are the short side: C itself is small."""
        shares = []
        for row, aim in zip(pairs, aims, strict=True):
            inside = _reduce(aim.measure, _reduce(aim.measure, row[-1]).T)
            shares.append(_lift(aim.measure, _lift(aim.measure, inside).T) / _length(row[-1]) ** 2)
        curvature = sum(shares[1:], start=shares[0])
        answer = self._answer(curvature, longest)
        wanted = [_lift(aim.target, _reduce(aim.target, share)) for aim, share in zip(aims, shares, strict=True)]
        return [answer @ (want - curvature * self.start).T for want in wanted]

    def _from_outputs(self, pairs: Pairs, aims: Sequence[Aim], *, longest: int) -> list[Any]:
        """F_i of X - X_0 = sum_i F_i A_i, where the columns (the outputs) are the short side."""
        numpy, count = library(pairs[0][0]), len(pairs)
        lengths = [_length(row[-1]) for row in pairs]
        lines = []
        for i in range(count):
            halves = [_reduce(aims[i].measure, _pair(pairs, i, j)) for j in range(count)]
            blocks = [_reduce(aims[j].measure, half.T).T / (lengths[i] * lengths[j]) for j, half in enumerate(halves)]
            lines.append(numpy.concatenate(blocks, axis=1))
        answer = self._answer(numpy.concatenate(lines), longest)
        del lines
        pulls = []
        for i, aim in enumerate(aims):
            here = sum((_pair(pairs, j, i) for j in range(1, count)), start=_pair(pairs, 0, i))
            pull = _lift(aim.target, _reduce(aim.target, pairs[i][-1])) - here * self.start
            pulls.append(_reduce(aim.measure, pull.T).T / lengths[i])
        widths = [int(pull.shape[1]) for pull in pulls]
        moved = numpy.concatenate(pulls, axis=1) @ answer
        changes, first = [], 0
        for aim, width, length in zip(aims, widths, lengths, strict=True):
            changes.append(_lift(aim.measure, moved[:, first : first + width].T).T / length)
            first += width
        return changes

    def _answer(self, matrix: Any, longest: int) -> Any:
        """Applies h to a symmetric matrix."""
        parts = eigen(matrix, longest=longest)
        return parts.function(self.response(parts.values))


def everything(square: Any, longest: int) -> Aim:
    """The aim of a source that is neither cut down nor measured by a part."""
    del square, longest
    return Aim(target=None, measure=None)


def _reduce(basis: Any, matrix: Any) -> Any:
    """Coordinates of columns in an orthonormal basis; None is the whole space, which costs nothing."""
    return matrix if basis is None else basis.T @ matrix


def _lift(basis: Any, coordinates: Any) -> Any:
    """Columns from their coordinates in a basis."""
    return coordinates if basis is None else basis @ coordinates


def _pairs(matrices: Sequence[Any], *, crossed: bool) -> Pairs:
    return [
        [products([left], [right]) for right in (matrices[:index] if crossed else [])] + [products([left], [left])]
        for index, left in enumerate(matrices)
    ]


def _pair(pairs: Pairs, i: int, j: int) -> Any:
    """A_i A_j^T."""
    return pairs[i][j] if j <= i else pairs[j][i].T


def _length(square: Any) -> float:
    """Norm of a source, read off its Gram matrix; a source of zeros disturbs nobody, whatever it is divided by."""
    return max(float(square.trace()), 0.0) ** 0.5 or 1.0


def _diagonal(square: Any, value: float) -> Any:
    numpy = library(square)
    return numpy.diag(numpy.ones_like(square[0]) * value)
