"""Values that may differ between tensors: a number, a gradient over layers, or one chosen by the tensor's name.

A weight or a parameter is written in one of three ways::

    0.5                                                     the same everywhere
    [0.0, 0.5, 1.0]                                         a gradient: these values, spread over the layers
    [{filter: self_attn, value: 0.3}, {value: 0.7}]         by name: the first whose filter is in the tensor's name

All have the same meaning as in mergekit: a gradient of numbers is interpolated linearly, one of words or booleans
changes in steps; a tensor outside the layers gets the first value; a choice without a filter, or with ``*``, always
matches. Filters are matched against the name in a language model's file: ``model.layers.0.self_attn.q_proj.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mcompose.errors import nearest_name
from mcompose.recipe.field_errors import FieldError

__all__ = ["Choice", "Scalar", "Value", "evaluate", "layer_position", "parse_value", "parse_weight", "scalars_of"]

Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """A value for the tensors whose name contains the filter.

    Args:
        value: A scalar or a gradient.
        filter: Part of a name; None or ``*`` for every name.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None

    def matches(self, name: str) -> bool:
        """Returns whether a tensor's name contains the filter."""
        return self.filter in {None, "*"} or str(self.filter) in name


Value: TypeAlias = Scalar | tuple[Scalar, ...] | tuple[Choice, ...]


def parse_value(raw: Any) -> Value:
    """Reads a value as the recipe writes it.

    Args:
        raw: A scalar, a list of scalars, or a list of ``{filter, value}``.

    Returns:
        The value; lists become tuples.

    Raises:
        FieldError: The value has another form.
    """
    if not isinstance(raw, list | tuple):
        return _scalar(raw)
    if not raw:
        raise FieldError("'{path}' is an empty list.", hint="Write a value, or leave the key out.")
    if any(isinstance(item, Mapping | Choice) for item in raw):
        return tuple(_choice(item, index) for index, item in enumerate(raw))
    return _gradient(raw)


def parse_weight(raw: Any) -> Value:
    """Reads a weight: a value made of finite numbers only.

    Raises:
        FieldError: The value contains something that is not a number.
    """
    value = parse_value(raw)
    for at, scalar in scalars_of(value):
        if isinstance(scalar, bool | str):
            shown = str(scalar).lower() if isinstance(scalar, bool) else f"'{scalar}'"
            raise FieldError(f"'{{path}}' must be a number, not {shown}.", at=at)
    return value


def evaluate(value: Value, *, name: str, position: float) -> Scalar | None:
    """Returns the scalar of a value for one tensor.

    Args:
        value: The value.
        name: Name of the tensor, for filters.
        position: Relative position of the tensor's layer, from 0 (first) to 1 (last).

    Returns:
        The scalar; None when no filter of the value matches.
    """
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], Choice):
        for choice in value:
            if isinstance(choice, Choice) and choice.matches(name):
                return evaluate(choice.value, name=name, position=position)
        return None
    return _interpolate(value, position)


def layer_position(layer: int | None, *, first: int, last: int) -> float:
    """Returns a layer's relative position: 0 outside the layers; 1 in a range of one layer, as in mergekit.

    Args:
        layer: The layer; None outside the layers.
        first: First layer of the range.
        last: Last layer of the range.
    """
    if layer is None:
        return 0.0
    return (layer - first) / (last - first) if last > first else 1.0


def _interpolate(points: Sequence[Any], position: float) -> Scalar:
    if isinstance(points[0], bool | str):
        return points[int(position * (len(points) - 1))]
    scaled = position * (len(points) - 1)
    left = int(scaled)
    right = min(left + 1, len(points) - 1)
    share = scaled - left
    return (1 - share) * points[left] + share * points[right]


def _scalar(raw: Any) -> Scalar:
    if raw is None:
        raise FieldError("'{path}' has no value.")
    if not isinstance(raw, bool | int | float | str):
        raise FieldError("'{path}' must be a single value, not a mapping or a list.")
    if isinstance(raw, float) and not math.isfinite(raw):
        raise FieldError(f"'{{path}}' must be finite, not {raw}.")
    if isinstance(raw, int) and abs(raw) > 2**63:
        raise FieldError("'{path}' is too large.")
    return raw


def _gradient(raw: Sequence[Any]) -> tuple[Scalar, ...]:
    scalars: list[Scalar] = []
    for index, item in enumerate(raw):
        try:
            scalars.append(_scalar(item))
        except FieldError as error:
            raise FieldError(error.message, at=(index,)) from None
    is_discrete = [isinstance(item, bool | str) for item in scalars]
    if any(is_discrete) and not all(is_discrete):
        odd = is_discrete.index(not is_discrete[0])
        raise FieldError("'{path}' differs in kind: a gradient must be all numbers or all words.", at=(odd,))
    return tuple(scalars)


def _choice(raw: Any, index: int) -> Choice:
    if isinstance(raw, Choice):
        return raw
    if not isinstance(raw, Mapping):
        raise FieldError("'{path}' must be {filter: ..., value: ...}, like the other items.", at=(index,))
    for key in raw:
        if key not in {"filter", "value"}:
            hint = nearest_name(str(key), ["filter", "value"])
            raise FieldError("'{path}' is not a known key.", at=(index, key), hint=hint)
    pattern = raw.get("filter")
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        raise FieldError("'{path}' must be text: a part of a tensor's name.", at=(index, "filter"))
    value = raw.get("value")
    try:
        return Choice(_gradient(value) if isinstance(value, list | tuple) and value else _scalar(value), pattern)
    except FieldError as error:
        raise FieldError(error.message, at=(index, "value", *error.at)) from None


def scalars_of(value: Value) -> list[tuple[tuple[str | int, ...], Scalar]]:
    """Returns every scalar in a value, with its key path."""
    if not isinstance(value, tuple):
        return [((), value)]
    scalars: list[tuple[tuple[str | int, ...], Scalar]] = []
    for index, item in enumerate(value):
        if isinstance(item, Choice):
            scalars += [((index, "value", *at), scalar) for at, scalar in scalars_of(item.value)]
        else:
            scalars.append(((index,), item))
    return scalars
