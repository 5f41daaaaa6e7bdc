"""From what pydantic says to what a person needs: one sentence, the line, and the nearest name."""

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
    """What a validator has against a value.

    Args:
        message: A sentence. ``{path}`` in it stands for the key path.
        at: Where, relative to the value that is validated.
        hint: What to do next.
    """

    def __init__(self, message: str, *, at: KeyPath = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.at = at
        self.hint = hint


def as_recipe_error(error: ValidationError, *, model: type[BaseModel], document: Document) -> RecipeError:
    """The most telling of a validation's errors as one recipe error.

    Args:
        error: What pydantic raised.
        model: Model of the whole document.
        document: The document that was validated.

    Returns:
        The error with file, line, key path and hint.
    """
    details = [(_keys(detail["loc"], document.data), detail) for detail in error.errors(include_url=False)]
    # A misspelt key also makes its right spelling missing: the misspelt one is the news.
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
    complaint = detail.get("ctx", {}).get("error")
    if isinstance(complaint, FieldError):
        return complaint.message, complaint.hint, (*loc, *complaint.at)
    if kind == "too_long":
        limits = detail["ctx"]
        return f"'{{path}}' holds {limits['max_length']} items, not {limits['actual_length']}.", "", loc
    if kind == "too_short":
        return "'{path}' is empty.", "", loc
    if kind in _KINDS:
        return f"'{{path}}' must be {_KINDS[kind]}, not {_show(value)}.", "", loc
    if kind == "literal_error":
        known = _literals(detail["ctx"]["expected"])
        return f"'{{path}}' cannot be {_show(value)}.", nearest_name(str(value), known), loc
    said = str(detail["msg"])
    return f"'{{path}}' cannot be {_show(value)}: {said[:1].lower()}{said[1:]}.", "", loc


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
    """The location without the names of union members, which pydantic puts in between."""
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
    """The keys of the model that stands at a path."""
    here: Any = model
    for key in at:
        here = _step(here, key)
    found = _model_in(here)
    return [] if found is None else [info.alias or name for name, info in found.model_fields.items()]


def _step(annotation: Any, key: str | int) -> Any:
    """The type under a key or index of a type."""
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
    """The alternatives of a union, without ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [inner for argument in typing.get_args(annotation) for inner in _members(argument)]
    return [annotation]
