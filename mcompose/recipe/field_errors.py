"""Turns pydantic's validation errors into one sentence with file, line and the nearest known name."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mcompose.errors import RecipeError, nearest_name
from mcompose.recipe.document import Document, KeyPath, spell

__all__ = ["FieldError", "as_recipe_error"]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
}
_ORDER = ("extra_forbidden", "value_error")


class FieldError(ValueError):
    """Error of a validator about a value of the recipe.

    Args:
        message: A sentence, in which ``{path}`` stands for the key path.
        at: Key path, relative to the value that is validated.
        hint: Next step for the user.
    """

    def __init__(self, message: str, *, at: KeyPath = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.at = at
        self.hint = hint


def as_recipe_error(error: ValidationError, *, model: type[BaseModel], document: Document) -> RecipeError:
    """Returns the most useful of pydantic's errors as one recipe error.

    Args:
        error: The error that pydantic raised.
        model: Model of the whole document.
        document: The document that was validated.

    Returns:
        The error with file, line, key path and hint.
    """
    details = [(_keys(detail["loc"], document.data), detail) for detail in error.errors(include_url=False)]
    # A misspelt key also makes the correct key missing: report the misspelt one.
    loc, detail = min(details, key=lambda pair: (_rank(pair[1]["type"]), document.line(pair[0])))
    message, hint, at = _sentence(loc, detail, model)
    return document.error(message.replace("{path}", spell(at)), at=at, hint=hint)


def _rank(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _sentence(loc: KeyPath, detail: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str, KeyPath]:
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        *outer, key = loc
        return "'{path}' is not a known key.", nearest_name(str(key), _known_keys(model, tuple(outer))), loc
    if kind == "missing":
        *outer, key = loc
        parent = f"'{spell(tuple(outer))}'" if outer else "the recipe"
        if isinstance(key, int):
            return f"{parent} has too few items: {key}.", "", loc
        return f"{parent} lacks the key '{key}'.", "", loc
    field_error = detail.get("ctx", {}).get("error")
    if isinstance(field_error, FieldError):
        return field_error.message, field_error.hint, (*loc, *field_error.at)
    if kind == "too_long":
        limits = detail["ctx"]
        return f"'{{path}}' must have {limits['max_length']} items, not {limits['actual_length']}.", "", loc
    if kind == "too_short":
        return "'{path}' is empty.", "", loc
    if kind in _KINDS:
        return f"'{{path}}' must be {_KINDS[kind]}, not {_show(value)}.", "", loc
    if kind == "literal_error":
        known = _literals(detail["ctx"]["expected"])
        return f"'{{path}}' cannot be {_show(value)}.", nearest_name(str(value), known), loc
    text = str(detail["msg"])
    return f"'{{path}}' cannot be {_show(value)}: {text[:1].lower()}{text[1:]}.", "", loc


def _literals(expected: str) -> list[str]:
    return [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:56] + "...'"


def _keys(loc: tuple[int | str, ...], data: Any) -> KeyPath:
    """Returns the key path of a location, without the names of union members that pydantic inserts."""
    path: list[str | int] = []
    for index, key in enumerate(loc):
        if key == "[key]":
            break
        is_last = index == len(loc) - 1
        if isinstance(data, Mapping) and (key in data or is_last):
            path.append(key)
            data = data.get(key)
        elif isinstance(data, Sequence) and not isinstance(data, str) and isinstance(key, int):
            path.append(key)
            data = data[key] if key < len(data) else None
    return tuple(path)


def _known_keys(model: type[BaseModel], at: KeyPath) -> list[str]:
    """Returns the keys of the model at a path."""
    annotation: Any = model
    for key in at:
        annotation = _step(annotation, key)
    inner = _model_in(annotation)
    return [] if inner is None else [info.alias or name for name, info in inner.model_fields.items()]


def _step(annotation: Any, key: str | int) -> Any:
    """Returns the type of the value at a key or index of a type."""
    model = _model_in(annotation)
    if model is not None and isinstance(key, str):
        by_key = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        return by_key.get(key)
    for inner in _members(annotation):
        origin, arguments = typing.get_origin(inner), typing.get_args(inner)
        if origin is dict and len(arguments) == 2:
            return arguments[1]
        if origin in {tuple, list} and arguments and isinstance(key, int):
            return arguments[0]
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for inner in _members(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _members(annotation: Any) -> list[Any]:
    """Returns the alternatives of a union, without ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [inner for argument in typing.get_args(annotation) for inner in _members(argument)]
    return [annotation]
