"""The label-free choice of coefficients: where the answers change least from one coefficient to the next.

Paper: AdaMMS, arXiv:2503.23733. Two models are interpolated with alpha, the weight of the second, on a grid (0 to 0.6
by 0.1); each merged model answers about a hundred unlabelled inputs. An answer counts as changed at alpha when it is
not the one of both neighbours, letters' case aside. The alpha with the fewest changes is taken. The ends of the grid
serve as neighbours only: they are never taken. The published script prints every alpha of a tie; here the first is
taken.

Several coefficients (not in the paper): neighbours differ by one step along one axis, an answer counts as changed when
it is not the one of all neighbours, and a point is a candidate when it has both neighbours along every axis. With one
axis this is the paper's rule.

A warning that holds for both: a coefficient at which the model says the same to every question is consistent, too. The
paper's bound of 0.6 is there because language collapsed beyond it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Point", "changed_answers", "choose", "grid_points"]

Point = tuple[int, ...]
"""A place on the grid: the number of its value along each axis."""


def grid_points(sizes: Sequence[int]) -> list[Point]:
    """Returns all places of a grid.

    Args:
        sizes: Values along each axis.

    Returns:
        The places, the last axis moving fastest.
    """
    return list(itertools.product(*(range(size) for size in sizes)))


def changed_answers(answers: Mapping[Point, Sequence[str]]) -> dict[Point, int]:
    """Counts, for every candidate, the questions whose answer is not that of all its neighbours.

    Args:
        answers: Place to its answers, one a question, in the same order everywhere.

    Returns:
        Candidate to count, in the order of the places. A place that lacks a neighbour along any axis, since it is at
        an end or the merge there failed, is not a candidate.
    """
    folded = {point: [text.lower() for text in answers[point]] for point in sorted(answers)}
    counts: dict[Point, int] = {}
    for point, own in folded.items():
        around = [folded.get(other) for other in _neighbours(point)]
        if around and all(other is not None for other in around):
            pairs = zip(own, *(other for other in around if other is not None), strict=True)
            counts[point] = sum(any(text != mine for text in others) for mine, *others in pairs)
    return counts


def _neighbours(point: Point) -> Iterable[Point]:
    for axis, place in enumerate(point):
        for moved in (place - 1, place + 1):
            yield (*point[:axis], moved, *point[axis + 1 :])


def choose(counts: Mapping[Point, int]) -> tuple[Point, ...]:
    """Returns the candidates with the fewest changes.

    Args:
        counts: From ``changed_answers``.

    Returns:
        All that tie, in order; the first is the choice. Nothing without candidates.
    """
    least = min(counts.values(), default=0)
    return tuple(point for point in sorted(counts) if counts[point] == least)
