"""The definition of a merge method: a pure function on tensors, and its properties for the engine.

A method file holds one function and one decorator::

    @method("task_arithmetic", title="Task Arithmetic", paper="arXiv:2212.04089", space="deltas")
    def task_arithmetic(deltas, *, weights, lambda_=1.0, normalize=False):
        ...

The function takes float32 arrays of one tensor (numpy on the CPU, torch elsewhere) and returns one: the merged weight
when ``space`` is ``weights``, the merged delta when it is ``deltas`` (the engine subtracts and adds the base). Its
keyword-only arguments are the recipe's parameters, with mergekit's names; ``lambda`` is written ``lambda_`` in Python.

A method may also have a ``Program``, the same computation over chunks; on the CPU the engine then uses it instead of
the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from mcompose.registry import Registry

__all__ = ["METHODS", "REQUIRED", "Method", "Parameter", "Program", "Survey", "TensorTask"]

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
"""Default of a parameter that the recipe must set."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Args:
        name: mergekit's name (``density``, ``lambda``).
        default: Value when the recipe does not set it, or ``REQUIRED``.
        per_source: True when a recipe may set one value for each source (``{sees: 0.5, hears: 0.3}``).
        kind: ``float``, ``int``, ``bool`` or ``str``.
        low: Smallest allowed value.
        high: Largest allowed value.
        choices: Allowed values of a ``str``.
        words: Other values, to the choice that each stands for (``True`` for mergekit's ``rescale: true``).
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
    """One tensor to be merged, with its settings.

    Args:
        name: Slot of the tensor, the same for every output format; random numbers depend on it, the seed and the
            source names.
        shape: Shape of the tensor.
        sources: Names of the sources, in order, without the base.
        weights: One weight for each source.
        parameters: Parameter name to value, or to a tuple with one value for each source.
        seed: Seed of the recipe.
        has_base: Whether there is a base; only used by methods with ``base="optional"``.
        survey: Finished survey of a ``whole_model`` method; None treats this tensor as the whole model.
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
    """A method for one tensor that works on chunks in element order, with O(chunk) memory.

    The whole tensor is passed through ``measure`` as often as ``passes`` says (norms, thresholds), then once through
    ``combine``, which writes. A program is used by one thread. Chunks are raw, of any mix of element types (uint16 is
    bfloat16; see ``kernels``); arithmetic is float32, with one rounding into ``out``.
    """

    chunk_multiple: int
    """Chunks start at multiples of it: 1, a tile, or the length of a row; 0 when the whole tensor is one chunk."""

    @property
    def passes(self) -> int:
        """Number of measuring passes; may become smaller after a pass, and further passes then have no effect."""
        ...

    def measure(self, index: int, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> bool:
        """Measures one chunk in pass ``index``, from element ``start``; returns False for a NaN or infinity.

        Values that do not affect the measurement may be missed here: ``combine`` checks all.
        """
        ...

    def combine(self, start: int, sources: Sequence[np.ndarray], base: np.ndarray | None, out: np.ndarray) -> int:
        """Writes the merged weights of one chunk, with the base; returns how many are not finite."""
        ...


class Survey(Protocol):
    """Measurement of all tensors by a ``whole_model`` method, before the first tensor is merged.

    In each pass, ``measure`` gets every chunk of every tensor, in any order and from any thread; then ``finish`` is
    called once. The finished survey is part of each ``TensorTask``.
    """

    passes: int

    def measure(self, index: int, sources: Sequence[np.ndarray], base: np.ndarray | None) -> None:
        """Measures one chunk in pass ``index``."""
        ...

    def finish(self, index: int) -> None:
        """Ends pass ``index``."""
        ...


@dataclass(frozen=True)
class Method:
    """A merge method with its properties for the engine.

    Args:
        name: Name in recipes.
        title: Full name, for cards.
        paper: ``arXiv:...`` or empty.
        function: The pure function.
        space: What the function merges: ``weights``, or ``deltas`` from the base.
        base: How the base is used: ``required``, ``optional`` or ``unused``.
        parameters: Parameters, in the order of the signature.
        min_sources: Fewest sources, without the base.
        max_sources: Most sources, without the base; None for any number.
        symmetric: True when the order of (source, weight) pairs does not matter.
        random: True when the result depends on the seed.
        program: Function that makes the program of a task; None when ``function`` must get whole tensors.
        whole_model: True when all tensors are measured first (``ties-global``).
        survey: Function that makes the survey of a ``whole_model`` method, from a task with the name of the model and
            the shape ``(elements of all tensors,)``.
        weighted: False when the method does not take weights (``slerp``); weights are then an error.
        mergekit_defaults: Defaults in mergekit recipes that differ from those in ``parameters``.
        mergekit_ignored: Parameters that a mergekit recipe may have and that have no effect here.
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
