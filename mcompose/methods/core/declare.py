"""The decorator that turns a function into a method of the catalogue.

Parameters are read from the signature: every keyword-only argument is one, with its default and annotation::

    def ties(deltas, *, weights: Weights, density: Annotated[PerSource, Range(0, 1)] = 1.0, normalize: bool = True)

Three names are not parameters: ``weights`` (one for each source), ``base`` and ``keys`` (addresses of random numbers).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mcompose.methods.core.method import METHODS, REQUIRED, Method, Parameter, Program, Survey, TensorTask
from mcompose.methods.core.settings import arguments_for

__all__ = ["Each", "PerSource", "Range", "Weights", "Words", "each", "method"]

F = TypeVar("F", bound=Callable[..., Any])

Weights = Sequence[float]
"""One weight for each source."""

RESERVED = ("weights", "base", "keys")


@dataclass(frozen=True)
class Range:
    """Bounds of a parameter, both included.

    Args:
        low: Smallest value.
        high: Largest value.
    """

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Words:
    """Other spellings of a choice.

    Args:
        values: Other value to the choice that it stands for.
    """

    values: Mapping[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Each:
    """Marks a parameter that may differ by source."""


PerSource = Annotated[float | Sequence[float], Each()]
"""A number, or one number for each source."""


def each(value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Returns a per-source argument as one number for each source.

    Args:
        value: One number, or one for each source.
        count: Number of sources.

    Returns:
        ``count`` numbers.
    """
    return (float(value),) * count if isinstance(value, (int, float)) else tuple(float(one) for one in value)


def method(
    name: str,
    *,
    program: Callable[..., Program] | None = None,
    survey: Callable[..., Survey] | None = None,
    **facts: Any,
) -> Callable[[F], F]:
    """Registers a function as a merge method.

    Args:
        name: Name in recipes.
        program: Function ``(task, **arguments) -> Program``, called with checked arguments.
        survey: Function ``(task, **arguments) -> Survey`` of a method that measures the whole model first.
        **facts: The other fields of ``Method`` (``title``, ``paper``, ``space``, ``base``, ...).

    Returns:
        The decorator; it returns the function unchanged.
    """

    def register(function: F) -> F:
        entry = Method(
            name=name,
            function=function,
            parameters=_parameters(function),
            weighted="weights" in inspect.signature(function).parameters,
            random="keys" in inspect.signature(function).parameters,
            whole_model=survey is not None,
            **facts,
        )
        METHODS.add(name, replace(entry, program=_checked(entry, program), survey=_checked(entry, survey)))
        return function

    return register


def _checked(entry: Method, build: Callable[..., Any] | None) -> Callable[[TensorTask], Any] | None:
    if build is None:
        return None

    def make(task: TensorTask) -> Any:
        return build(task, **arguments_for(entry, task))

    return make


def _parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        _parameter(argument, hints[argument.name])
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY and argument.name not in RESERVED
    )


def _parameter(argument: inspect.Parameter, hint: Any) -> Parameter:
    notes: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        notes += more
    per_source = any(isinstance(note, Each) for note in notes)
    bounds = next((note for note in notes if isinstance(note, Range)), Range())
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Parameter(
        name="lambda" if argument.name == "lambda_" else argument.name,
        default=REQUIRED if argument.default is argument.empty else argument.default,
        per_source=per_source,
        kind=float if per_source else str if choices else hint,
        low=bounds.low,
        high=bounds.high,
        choices=choices,
        words=next((note.values for note in notes if isinstance(note, Words)), {}),
    )
