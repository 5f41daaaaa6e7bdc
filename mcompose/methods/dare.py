"""DARE: drop elements of every delta at random, make up for them, then add up or elect signs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mcompose.methods.core.declare import PerSource, Weights, each, method
from mcompose.methods.core.method import Program, TensorTask
from mcompose.methods.core.prune import Density, Rescale, add_up, elect_weighted, keep_random, match_norm
from mcompose.methods.core.prune_program import Combination, KeepAll, KeepRandom, PruneProgram
from mcompose.methods.core.randomness import addresses

__all__ = ["dare_linear", "dare_ties"]

_dare = partial(
    method,
    paper="arXiv:2311.03099",
    space="deltas",
    base="required",
    mergekit_defaults={"rescale": "mergekit"},
    mergekit_ignored=("int8_mask",),
)
"""What both variants are; a mergekit recipe that is silent means its own way of making up for what is dropped."""


def _program(task: TensorTask, combination: Combination, keys: Sequence[int], settings: dict[str, Any]) -> Program:
    shares, rescale = each(settings["density"], len(task.sources)), settings["rescale"]
    cuts = [KeepAll() if share >= 1 else KeepRandom(share, key) for share, key in zip(shares, keys, strict=True)]
    divisors = [_divisor(share, rescale) for share in shares]
    return PruneProgram(cuts, combination, match_norm=rescale == "mergekit", divisors=divisors)


def _linear_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **settings: Any) -> Program:
    combination = Combination.added_up(weights, normalize=normalize, lambda_=lambda_)
    return _program(task, combination, addresses("dare_linear", task), settings)


def _ties_program(task: TensorTask, *, weights: Weights, normalize: bool, lambda_: float, **settings: Any) -> Program:
    combination = Combination.by_election(weights, normalize=normalize, lambda_=lambda_)
    return _program(task, combination, addresses("dare_ties", task), settings)


def _divisor(share: float, rescale: str) -> float:
    return share if rescale == "paper" and 0 < share < 1 else 1.0


def _dropped(deltas: Any, density: PerSource, rescale: str, keys: Sequence[int]) -> list[Any]:
    values = []
    for delta, share, key in zip(deltas, each(density, len(deltas)), keys, strict=True):
        kept = keep_random(delta, share, key)
        values.append(match_norm(kept, delta) if rescale == "mergekit" else kept / _divisor(share, rescale))
    return values


@_dare("dare_linear", title="DARE (linear)", program=_linear_program)
def dare_linear(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    rescale: Rescale = "paper",
    normalize: bool = False,
    lambda_: float = 1.0,
    keys: Sequence[int],
) -> Any:
    """Keeps every element of every delta with probability ``density``, rescales, adds up.

    Paper: Language Models are Super Mario, arXiv:2311.03099; ``rescale: paper`` divides by the density, so that
        the expected delta is the delta.
    Differs: ``rescale: mergekit`` (or true) restores each delta's sum of absolute values instead; that is what a
        mergekit recipe means. The mask depends on the seed and the names alone, not on the order of tensors.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Probability of being kept.
        rescale: ``paper``, ``mergekit`` or ``none``.
        normalize: Whether to divide by the sum of the weights (not where that is zero).
        lambda_: Factor of the merged delta.
        keys: One address of randomness a source.

    Returns:
        The merged delta.
    """
    values = _dropped(deltas, density, rescale, keys)
    return add_up(values, weights, normalize=normalize, lambda_=lambda_)


@_dare("dare_ties", title="DARE (TIES)", program=_ties_program)
def dare_ties(  # noqa: PLR0913 - its parameters are the recipe's
    deltas: Any,
    *,
    weights: Weights,
    density: Density = 1.0,
    rescale: Rescale = "paper",
    normalize: bool = False,
    lambda_: float = 1.0,
    keys: Sequence[int],
) -> Any:
    """Drops at random as `dare_linear` does, then elects a sign for each element as TIES does.

    Paper: arXiv:2311.03099 (dropping) and arXiv:2306.01708 (election).
    Differs: as in mergekit, weights take part in the election; see `dare_linear` for the rest.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One weight for each source.
        density: Probability of being kept.
        rescale: ``paper``, ``mergekit`` or ``none``.
        normalize: Whether to divide by the weights that agree.
        lambda_: Factor of the merged delta.
        keys: One address of randomness a source.

    Returns:
        The merged delta.
    """
    values = _dropped(deltas, density, rescale, keys)
    return elect_weighted(values, weights, normalize=normalize, lambda_=lambda_)
