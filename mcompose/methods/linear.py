"""Weighted sums of the sources: linear (model soups) and NaiveMC's average."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcompose.methods.core.blend import Blend, blend, total_weight
from mcompose.methods.core.blend_program import blend_program
from mcompose.methods.core.declare import Weights, method

__all__ = ["linear", "naivemc"]


def _linear(gram: None, *, weights: Weights, normalize: bool) -> Blend:
    return Blend(np.asarray(weights), divisor=total_weight(weights) if normalize else 1.0)


def _naivemc(gram: None, *, weights: Weights) -> Blend:
    return Blend(np.asarray(weights))


@method(
    "naivemc",
    title="NaiveMC (average of the language models)",
    paper="arXiv:2402.12750",
    space="weights",
    base="unused",
    program=blend_program(_naivemc, measured=False),
)
def naivemc(tensors: Any, *, weights: Weights) -> Any:
    """Averages the sources: sum_i w_i x_i.

    Paper: Model Composition for Multimodal Large Language Models, arXiv:2402.12750, section 3.
    Differs: unequal weights are allowed; they are used as given, and are 1/M when the recipe gives none.

    Args:
        tensors: M float32 arrays of one shape.
        weights: One weight for each source.

    Returns:
        The weighted sum, float32.
    """
    return blend(tensors, _naivemc(None, weights=weights))


@method(
    "linear",
    title="Linear (model soup)",
    paper="arXiv:2203.05482",
    space="weights",
    base="unused",
    program=blend_program(_linear, measured=False),
)
def linear(tensors: Any, *, weights: Weights, normalize: bool = True) -> Any:
    """Averages the sources by weight: sum_i w_i x_i / sum_i w_i.

    Paper: Model soups, arXiv:2203.05482 (the uniform soup).
    Differs: from mergekit only where its weights sum to zero: there the quotient is infinite, here it is an
        error.

    Args:
        tensors: M float32 arrays of one shape.
        weights: One weight for each source.
        normalize: Whether to divide by the sum of the weights.

    Returns:
        The weighted average, float32.

    Raises:
        NumericsError: The weights sum to zero and are to be normalised.
    """
    return blend(tensors, _linear(None, weights=weights, normalize=normalize))
