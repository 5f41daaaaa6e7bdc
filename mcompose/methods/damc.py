"""DAMC's rule for the text group: the base, plus every source's change times its own coefficient.

DAMC is three things in three places. Here is the sum, with one coefficient a source, which a recipe may lay out over
the layers; ``modeling/groups/linear.py`` sends every token to the weights of its origin; ``compose/decoupled.py``
decides what becomes of each group. A modality's own group is copied whole from its source unless ``modality_weights``
says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcompose.methods.core import kernels
from mcompose.methods.core.blend import Blend, blend
from mcompose.methods.core.declare import PerSource, Weights, method
from mcompose.methods.core.method import TensorTask

__all__ = ["damc"]

NOTHING = 1e-9
"""Coefficients that are written to add up to one may miss it by a rounding error in float64."""


class _Text:
    """The sum over chunks, as one sum of weights: (1 - sum_i w_i) W0 + sum_i w_i W_i.

    It equals the sum of changes, without subtracting numbers that are nearly equal; where the coefficients add up to
    one it is the average of the sources to the bit, and with one source that source.

    Args:
        weights: One a source.
    """

    passes = 0
    chunk_multiple = 1

    def __init__(self, weights: Weights) -> None:
        rest = 1.0 - sum(weights)
        self.kept = abs(rest) > NOTHING
        self.coefficients = np.array([*weights, rest] if self.kept else weights, np.float32)

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Has nothing to learn."""
        return True

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Sums one chunk."""
        inputs = [*sources, base] if self.kept and base is not None else sources
        return kernels.weighted_sum(inputs, self.coefficients, out)


def _program(task: TensorTask, *, weights: Weights, modality_weights: PerSource) -> _Text:
    return _Text(weights)


@method(
    "damc",
    title="DAMC (decoupled parameters, adaptive coefficients)",
    paper="arXiv:2402.12750",
    space="deltas",
    base="required",
    program=_program,
)
def damc(deltas: Any, *, weights: Weights, modality_weights: PerSource = 1.0) -> Any:
    """Adds the weighted changes of the sources' text groups: sum_i w_i d_i.

    Paper: Model Composition for Multimodal Large Language Models, arXiv:2402.12750, section 3.
    Differs: a coefficient may follow a gradient over the layers, and one that is not given is 1/M; in the paper's code
        a name that is left out counts 1.

    Args:
        deltas: M float32 arrays of one shape, source minus base.
        weights: One coefficient a source.
        modality_weights: Coefficient of each source's modality groups, around the base. It does not touch the text
            group; the composition reads it.

    Returns:
        The merged delta.
    """
    return blend(deltas, Blend(np.asarray(weights)))
