"""Values that may differ from tensor to tensor: a number, a gradient over layers, or one chosen by the tensor's name.

A weight or a parameter is written in one of three ways::

    0.5                                                     the same everywhere
    [0.0, 0.5, 1.0]                                         a gradient: these values, spread over the layers
    [{filter: self_attn, value: 0.3}, {value: 0.7}]         by name: the first whose filter is in the tensor's name

They are mergekit's, with mergekit's meaning: a gradient of numbers is interpolated linearly, one of words or booleans
steps; a tensor outside the layers takes the first value; a choice without a filter, or with ``*``, always matches.
A filter is looked for in the name as a language model's file spells it: ``model.layers.0.self_attn.q_proj.weight``.
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
        """Whether the filter lets a tensor's name pass."""
        return self.filter in {None, "*"} or str(self.filter) in name


Value: TypeAlias = Scalar | tuple[Scalar, ...] | tuple[Choice, ...]


def parse_value(raw: Any) -> Value:
    """Reads a value as the recipe writes it.

    Args:
        raw: A scalar, a list of scalars, or a list of ``{filter, value}``.

    Returns:
        The value; lists are tuples.

    Raises:
        FieldError: It is none of these.
    """
    if not isinstance(raw, list | tuple):
        return _scalar(raw)
    if not raw:
        raise FieldError("'{path}' is an empty list.")
    if any(isinstance(item, Mapping | Choice) for item in raw):
        return tuple(_choice(item, index) for index, item in enumerate(raw))
    return _gradient(raw)


def parse_weight(raw: Any) -> Value:
    """Reads a weight: a value made of finite numbers only.

    Raises:
        FieldError: Something in it is not a number.
    """
    value = parse_value(raw)
    for at, scalar in scalars_of(value):
        if isinstance(scalar, bool | str):
            shown = str(scalar).lower() if isinstance(scalar, bool) else f"'{scalar}'"
            raise FieldError(f"'{{path}}' must be a number, not {shown}.", at=at)
    return value


def evaluate(value: Value, *, name: str, position: float) -> Scalar | None:
    """The scalar that a value takes for one tensor.

    Args:
        value: The value.
        name: The tensor's name, for filters.
        position: Where its layer stands, 0 (first) to 1 (last).

    Returns:
        The scalar; None when the value is by name and no filter matches.
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
    """Where a layer stands between two others, as mergekit counts: 0 outside the layers, 1 for a single layer."""
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
        except FieldError as complaint:
            raise FieldError(complaint.message, at=(index,)) from None
    is_discrete = [isinstance(item, bool | str) for item in scalars]
    if any(is_discrete) and not all(is_discrete):
        odd = is_discrete.index(not is_discrete[0])
        raise FieldError("'{path}' mixes words into numbers; a gradient holds one kind.", at=(odd,))
    return tuple(scalars)


def _choice(raw: Any, index: int) -> Choice:
    if isinstance(raw, Choice):
        return raw
    if not isinstance(raw, Mapping):
        raise FieldError("'{path}' must be {filter: ..., value: ...}, as its neighbours.", at=(index,))
    for key in raw:
        if key not in {"filter", "value"}:
            hint = nearest_name(str(key), ["filter", "value"])
            raise FieldError("'{path}' is not a known key.", at=(index, key), hint=hint)
    pattern = raw.get("filter")
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        raise FieldError("'{path}' must be part of a tensor's name.", at=(index, "filter"))
    value = raw.get("value")
    try:
        return Choice(_gradient(value) if isinstance(value, list | tuple) and value else _scalar(value), pattern)
    except FieldError as complaint:
        raise FieldError(complaint.message, at=(index, "value", *complaint.at)) from None


def scalars_of(value: Value) -> list[tuple[tuple[str | int, ...], Scalar]]:
    """Every scalar in a value, with its place."""
    if not isinstance(value, tuple):
        return [((), value)]
    found: list[tuple[tuple[str | int, ...], Scalar]] = []
    for index, item in enumerate(value):
        if isinstance(item, Choice):
            found += [((index, "value", *at), scalar) for at, scalar in scalars_of(item.value)]
        else:
            found.append(((index,), item))
    return found
