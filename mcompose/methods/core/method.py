"""What a merge method is: a pure function on tensors, and what the engine must know about it.

A method file holds one function and one decorator::

    @method("task_arithmetic", title="Task Arithmetic", paper="arXiv:2212.04089", space="deltas")
    def task_arithmetic(deltas, *, weights, lambda_=1.0, normalize=False):
        ...

The function takes float32 arrays of one tensor (numpy on the CPU, torch elsewhere) and returns one: the
merged weight when ``space`` is ``weights``, the merged delta when it is ``deltas`` (the engine does the one
subtraction and the one addition). Its keyword-only arguments are the recipe's parameters, under mergekit's
names; ``lambda`` is spelt ``lambda_`` in Python only.

The engine never calls the function on large CPU tensors: a method may give a ``Program``, the same maths
over chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from mcompose.registry import Registry

__all__ = ["METHODS", "REQUIRED", "Method", "Parameter", "Program", "Survey", "TensorTask"]

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
"""Default of a parameter that the recipe must give."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Args:
        name: mergekit's name (``density``, ``lambda``).
        default: Value when the recipe gives none, or ``REQUIRED``.
        per_source: True when a recipe may give one value per source (``{sees: 0.5, hears: 0.3}``).
        kind: ``float``, ``int``, ``bool`` or ``str``.
        low: Smallest allowed value.
        high: Largest allowed value.
        choices: The words that a ``str`` may be.
        words: Other values and the choice that they stand for (``True`` for mergekit's ``rescale: true``).
    """

    name: str
    default: Any
    per_source: bool = False
    kind: type = float
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    words: Mapping[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorTask:
    """One tensor to be merged.

    Args:
        name: Output name; addresses the randomness together with the seed and the source names.
        shape: Shape of the tensor.
        sources: Names of the sources, in order (without the base).
        weights: One weight a source.
        parameters: Parameter name to value, or to a tuple with one value a source.
        seed: The recipe's seed.
        has_base: Whether a base takes part; only methods with ``base="optional"`` look at it.
        survey: The finished survey of a ``whole_model`` method; None makes this tensor the whole model.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    has_base: bool = False
    survey: Any = None


class Program(Protocol):
    """A method compiled for one tensor: it is fed chunks in element order and keeps O(chunk) memory.

    ``passes`` times the whole tensor is streamed through ``measure`` (norms, thresholds); then once through
    ``combine``, which writes. One program is used by one thread. Chunks are raw, of any mix of element types (uint16 is
    bfloat16; see `kernels`); arithmetic is float32, with one rounding into ``out``.
    """

    chunk_multiple: int
    """Chunks start at multiples of it: 1, a tile, or the length of a row; 0 when the whole tensor is one chunk."""

    @property
    def passes(self) -> int:
        """Measuring passes; may become fewer when one is over, and then a further one changes nothing."""
        ...

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Takes one chunk of measuring pass ``index``, from element ``start``; False when it holds a NaN or infinity.

        What does not matter to the measurement may go unnoticed: `combine` notices it.
        """
        ...

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Writes the merged weights of one chunk (base included, whatever the space); says how many are not finite."""
        ...


class Survey(Protocol):
    """What a ``whole_model`` method learns from all tensors before the first is merged.

    For every pass, in order: `measure` takes every chunk of every tensor, in any order and from any thread,
    then `finish` is called once. The survey then goes into each `TensorTask`.
    """

    passes: int

    def measure(self, index: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> None:
        """Takes one chunk of pass ``index``."""
        ...

    def finish(self, index: int) -> None:
        """Ends pass ``index``."""
        ...


@dataclass(frozen=True)
class Method:
    """A merge method and what the engine must know about it.

    Args:
        name: Name in recipes.
        title: Full name, for cards.
        paper: ``arXiv:...`` or empty.
        function: The pure function.
        space: ``weights``, or ``deltas`` from the base.
        base: Whether the base takes part: ``required``, ``optional`` or ``unused``.
        parameters: In the order of the signature.
        min_sources: Fewest sources, base not counted.
        max_sources: Most sources; None for any number.
        symmetric: True when the order of (source, weight) pairs does not matter.
        random: True when the seed matters.
        program: Makes the chunked form; None when the engine must give whole tensors to ``function``.
        whole_model: True when a measuring pass over all tensors comes first (``ties-global``).
        survey: Makes the survey of a ``whole_model`` method from a task whose name is the model and whose
            shape is ``(elements of all tensors,)``.
        weighted: False when the method takes no weights (``slerp``): giving some is an error.
        mergekit_defaults: What a mergekit recipe means when it is silent, where this differs from
            ``parameters``.
        mergekit_ignored: Parameters that a mergekit recipe may carry and that change nothing here.
    """

    name: str
    title: str
    paper: str
    function: Callable[..., Any]
    space: Literal["weights", "deltas"]
    base: Literal["required", "optional", "unused"]
    parameters: tuple[Parameter, ...] = ()
    min_sources: int = 1
    max_sources: int | None = None
    symmetric: bool = True
    random: bool = False
    program: Callable[[TensorTask], Program] | None = None
    whole_model: bool = False
    survey: Callable[[TensorTask], Survey] | None = None
    weighted: bool = True
    mergekit_defaults: Mapping[str, Any] = field(default_factory=dict)
    mergekit_ignored: tuple[str, ...] = ()


METHODS: Registry[Method] = Registry("merge method")
