"""DELLA: drop at random, the small elements of a row more often than the large, then elect signs or add up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from mcompose.errors import RequestError
from mcompose.methods.core.declare import PerSource, Range, Weights, each, method
from mcompose.methods.core.method import Program, TensorTask
from mcompose.methods.core.prune import Density, Rescale, add_up, elect_weighted, keep_ranked, match_norm
from mcompose.methods.core.prune_program import Combination, Cut, KeepAll, KeepNone, KeepRanked, PruneProgram
from mcompose.methods.core.randomness import addresses

__all__ = ["della", "della_linear"]

Epsilon = Annotated[PerSource, Range(0.0, 1.0)]
"""How far the probabilities of the largest and the smallest element of a row lie from the density."""

_della = partial(
    method,
    paper="arXiv:2406.11617",
    space="deltas",
    base="required",
    mergekit_defaults={"rescale": "mergekit"},
    mergekit_ignored=("int8_mask",),
)
"""What both variants are; a mergekit recipe that is silent means its own way of making up for what is dropped."""


def _check(density: float, epsilon: float) -> None:
    if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise RequestError(
            f"DELLA's density {density:g} with epsilon {epsilon:g} gives probabilities outside (0, 1).",
            hint=f"Choose an epsilon below {min(density, 1 - density):g}.",
        )


def _cut(density: float, epsilon: float, *, key: int, row: int, divide: bool) -> Cut:
    _check(density, epsilon)
    if density >= 1:
        return KeepAll()
    return KeepRanked(density, epsilon, key=key, row=row, divide=divide) if density > 0 else KeepNone()


def _program(task: TensorTask, combination: Combination, keys: Sequence[int], settings: dict[str, Any]) -> Program:
    count, row = len(task.sources), task.shape[-1] if task.shape else 1
    shares, spreads = each(settings["density"], count), each(settings["epsilon"], count)
    divide = settings["rescale"] == "paper"
    cuts = [
        _cut(share, spread, key=key, row=row, divide=divide)
        for share, spread, key in zip(shares, spreads, keys, strict=True)
    ]
    return PruneProgram(cuts, combination, match_norm=settings["rescale"] == "mergekit")


def _linear_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **settings: Any) -> Program:
    combination = Combination.added_up(weights, normalize=normalize, lambda_=lambda_)
    return _program(task, combination, addresses("della_linear", task), settings)


def _ties_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **settings: Any) -> Program:
    combination = Combination.by_election(weights, normalize=normalize, lambda_=lambda_)
    return _program(task, combination, addresses("della", task), settings)


def _dropped(deltas: Any, density: PerSource, epsilon: PerSource, rescale: str, keys: Sequence[int]) -> list[Any]:
    values = []
    settings = zip(each(density, len(deltas)), each(epsilon, len(deltas)), keys, strict=True)
    for delta, (share, spread, key) in zip(deltas, settings, strict=True):
        _check(share, spread)
        if share >= 1 or share <= 0:
            values.append(delta if share >= 1 else delta * 0.0)
            continue
        kept, chance = keep_ranked(delta, share, spread, key)
        made_up = {"paper": kept / chance, "none": kept}
        values.append(match_norm(kept, delta) if rescale == "mergekit" else made_up[rescale])
    return values


@_della("della", title="DELLA", program=_ties_program)
def della(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    rescale: Rescale = "paper",
    normalize: bool = True,
    lambda_: float = 1.0,
    keys: Sequence[int],
) -> Any:
    """Drops elements at random by their rank in the row, rescales, elects signs, averages those that agree.

    The smallest of a row is kept with probability ``density - epsilon``, the largest with ``density + epsilon``.

    Paper: DELLA-Merging, arXiv:2406.11617; ``rescale: paper`` divides each kept element by its probability.
    Differs: ``rescale: mergekit`` (or true) restores each delta's sum of absolute values instead; that is what a
        mergekit recipe means. A row is the last dimension (mergekit: the second); a row of one element, which has
        no rank, is kept with probability ``density``, where mergekit divides by zero.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Mean probability of being kept.
        epsilon: Largest distance of a probability from the density.
        rescale: ``paper``, ``mergekit`` or ``none``.
        normalize: Whether to divide by the weights that agree.
        lambda_: Factor of the merged delta.
        keys: One address of randomness a source.

    Returns:
        The merged delta.

    Raises:
        RequestError: Density and epsilon give a probability outside (0, 1).
    """
    values = _dropped(deltas, density, epsilon, rescale, keys)
    return elect_weighted(values, weights, normalize=normalize, lambda_=lambda_)


@_della("della_linear", title="DELLA (linear)", program=_linear_program)
def della_linear(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    rescale: Rescale = "paper",
    normalize: bool = False,
    lambda_: float = 1.0,
    keys: Sequence[int],
) -> Any:
    """Drops as `della` does, then adds up without an election.

    Paper: DELLA-Merging, arXiv:2406.11617, without its election step.
    Differs: see `della`.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Mean probability of being kept.
        epsilon: Largest distance of a probability from the density.
        rescale: ``paper``, ``mergekit`` or ``none``.
        normalize: Whether to divide by the sum of the weights (not where that is zero).
        lambda_: Factor of the merged delta.
        keys: One address of randomness a source.

    Returns:
        The merged delta.

    Raises:
        RequestError: Density and epsilon give a probability outside (0, 1).
    """
    values = _dropped(deltas, density, epsilon, rescale, keys)
    return add_up(values, weights, normalize=normalize, lambda_=lambda_)
