"""Turns a recipe's settings into a method's arguments: fills in defaults and checks ranges.

Every call of a method (program, survey, ``merge_tensors``) uses this module, so an invalid value gives the same error
everywhere, before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mcompose.errors import RequestError, nearest_name
from mcompose.methods.core.method import REQUIRED, Method, Parameter, TensorTask

__all__ = ["arguments_for", "check_sources", "python_name"]


def python_name(name: str) -> str:
    """Returns a parameter's name in Python, where ``lambda`` is a keyword."""
    return "lambda_" if name == "lambda" else name


def arguments_for(method: Method, task: TensorTask) -> dict[str, Any]:
    """Turns a task's settings into the method's keyword arguments.

    Args:
        method: The method.
        task: The tensor, with its sources, weights and parameters.

    Returns:
        Keyword arguments by Python name; per-source parameters are tuples with one value for each source, and
        ``weights`` is included when the method is weighted.

    Raises:
        RequestError: A parameter is unknown, missing, out of range or of the wrong length, or the method does not
            accept the number of sources or weights.
    """
    check_sources(method, len(task.sources))
    known = {parameter.name: parameter for parameter in method.parameters}
    for name in task.parameters:
        if name not in known:
            raise RequestError(
                f"Method '{method.name}' has no parameter '{name}'.", hint=nearest_name(str(name), known)
            )
    arguments: dict[str, Any] = {
        python_name(name): _value(method, parameter, task) for name, parameter in known.items()
    }
    if method.weighted:
        arguments["weights"] = _weights(method, task)
    return arguments


def check_sources(method: Method, count: int) -> None:
    """Checks the number of sources.

    Raises:
        RequestError: There are too few or too many.
    """
    low, high = method.min_sources, method.max_sources
    if count < low or (high is not None and count > high):
        allowed = f"exactly {low}" if high == low else f"at least {low}" if count < low else f"at most {high}"
        raise RequestError(f"Method '{method.name}' takes {allowed} source(s), not {count}.")


def _weights(method: Method, task: TensorTask) -> tuple[float, ...]:
    weights = tuple(float(weight) for weight in task.weights)
    if len(weights) != len(task.sources):
        raise RequestError(
            f"Method '{method.name}' needs one weight for each of {len(task.sources)} source(s), not {len(weights)}."
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise RequestError(f"The weights of method '{method.name}' must be finite, not {list(weights)}.")
    return weights


def _value(method: Method, parameter: Parameter, task: TensorTask) -> Any:
    value = task.parameters.get(parameter.name, parameter.default)
    if value is REQUIRED:
        raise RequestError(
            f"Method '{method.name}' needs the parameter '{parameter.name}'.",
            hint=f"Write `parameters: {{{parameter.name}: ...}}`.",
        )
    if not parameter.per_source:
        return _checked(method, parameter, value)
    if isinstance(value, Mapping):
        value = _by_name(method, parameter, value, task.sources)
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * len(task.sources)
    if len(values) != len(task.sources):
        raise RequestError(
            f"Parameter '{parameter.name}' of method '{method.name}' has {len(values)} value(s) "
            f"for {len(task.sources)} source(s)."
        )
    return tuple(_checked(method, parameter, one) for one in values)


def _by_name(
    method: Method, parameter: Parameter, values: Mapping[str, Any], sources: Sequence[str]
) -> tuple[Any, ...]:
    for name in values:
        if name not in sources:
            raise RequestError(
                f"Parameter '{parameter.name}' of method '{method.name}' names '{name}', which is not a source.",
                hint=nearest_name(name, sources),
            )
    missing = [source for source in sources if source not in values]
    if missing:
        raise RequestError(
            f"Parameter '{parameter.name}' of method '{method.name}' has no value for source '{missing[0]}'."
        )
    return tuple(values[source] for source in sources)


def _checked(method: Method, parameter: Parameter, value: Any) -> Any:
    place = f"Parameter '{parameter.name}' of method '{method.name}'"
    if parameter.kind is str:
        return _word(place, parameter, value)
    if not _fits(parameter.kind, value):
        raise RequestError(f"{place} must be a {parameter.kind.__name__}, not {value!r}.")
    if parameter.kind is bool:
        return bool(value)
    number = parameter.kind(value)
    low, high = parameter.low, parameter.high
    if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
        raise RequestError(f"{place} is {value!r}; it must be in {_span(low, high)}.")
    return number


def _word(place: str, parameter: Parameter, value: Any) -> str:
    for other, word in parameter.words.items():
        if value is other:
            return word
    if value not in parameter.choices:
        raise RequestError(f"{place} cannot be {value!r}.", hint=nearest_name(str(value), parameter.choices))
    return str(value)


def _fits(kind: type, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return kind is float or float(value).is_integer()


def _span(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"[{low:g}, {high:g}]"
    return f"the numbers from {low:g}" if low is not None else "the finite numbers"
