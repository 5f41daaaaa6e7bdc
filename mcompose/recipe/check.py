"""Checks that a recipe's merge method exists and accepts the recipe's sources, weights and parameters.

The caller passes the catalogue of methods, because ``recipe`` and ``methods`` do not import each other. ``Method`` in
``mcompose.methods`` satisfies the protocol ``MethodLike``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mcompose.errors import nearest_name
from mcompose.recipe.document import Document, KeyPath, spell
from mcompose.recipe.load import LoadedRecipe
from mcompose.recipe.schema import Recipe
from mcompose.recipe.values import Choice, Value, scalars_of

__all__ = ["MethodLike", "ParameterLike", "check_method", "is_required"]

_BRIDGED = re.compile(r"mergekit:[A-Za-z_][A-Za-z0-9_]*")
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


class ParameterLike(Protocol):
    """What the checks need from a method's parameter; ``repr(default) == "required"`` means: without a default."""

    @property
    def name(self) -> str:
        """Name in recipes."""
        ...

    @property
    def default(self) -> Any:
        """Value when the recipe does not set it."""
        ...

    @property
    def per_source(self) -> bool:
        """Whether each source may have its own value."""
        ...

    @property
    def kind(self) -> type:
        """``float``, ``int``, ``bool`` or ``str``."""
        ...

    @property
    def low(self) -> float | None:
        """Smallest allowed value."""
        ...

    @property
    def high(self) -> float | None:
        """Largest allowed value."""
        ...

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed values of a ``str``."""
        ...

    @property
    def words(self) -> Mapping[Any, str]:
        """Other accepted values, to the choice that each stands for."""
        ...


class MethodLike(Protocol):
    """What the checks need from a method."""

    @property
    def parameters(self) -> tuple[ParameterLike, ...]:
        """Parameters of the method."""
        ...

    @property
    def base(self) -> str:
        """``required``, ``optional`` or ``unused``."""
        ...

    @property
    def min_sources(self) -> int:
        """Fewest sources, without the base."""
        ...

    @property
    def max_sources(self) -> int | None:
        """Most sources, without the base; None for any number."""
        ...

    @property
    def weighted(self) -> bool:
        """Whether the method takes weights."""
        ...


@dataclass(frozen=True)
class _Use:
    """One place where a recipe uses a method."""

    at: KeyPath
    method: str
    parameters: Mapping[str, Any]
    inherited: Mapping[str, Any]
    num_sources: int
    is_weighted: bool


def check_method(recipe: LoadedRecipe | Recipe, catalogue: Mapping[str, MethodLike]) -> None:
    """Checks method names, parameters and the number of sources.

    Args:
        recipe: The recipe; the errors of a loaded one name its file and line.
        catalogue: Method name to method. ``mergekit:<name>`` is not checked here; the bridge does that.

    Raises:
        RecipeError: A method is unknown, or does not accept the recipe's sources, weights or parameters.
    """
    document = recipe.document if isinstance(recipe, LoadedRecipe) else Document("", {})
    plain = recipe.recipe if isinstance(recipe, LoadedRecipe) else recipe
    for use in _uses(plain):
        if _BRIDGED.fullmatch(use.method):
            continue
        if use.method not in catalogue:
            at = (*use.at, "method")
            hint = nearest_name(use.method, catalogue)
            raise document.error(f"'{spell(at)}' is not a known method: '{use.method}'.", at=at, hint=hint)
        method = catalogue[use.method]
        _check_weights(use, method, document)
        _check_sources(use, method, plain, document)
        _check_parameters(use, method, document)


def is_required(parameter: ParameterLike) -> bool:
    """Returns whether a recipe must set this parameter."""
    return repr(parameter.default) == "required"


def _uses(recipe: Recipe) -> Iterator[_Use]:
    merge, count = recipe.merge, len(recipe.sources) or 1  # without sources, the base is all that there is
    if merge.slices is None:
        yield _Use(("merge",), merge.method, merge.parameters, {}, count, merge.weights is not None)
    for index, piece in enumerate(merge.slices or ()):
        at = ("merge", "slices", index)
        yield _Use(at, merge.method, piece.parameters, merge.parameters, len(piece.names), piece.weights is not None)
    for index, override in enumerate(merge.overrides):
        is_same = override.method in {None, merge.method}
        inherited = merge.parameters if is_same else {}
        at = ("merge", "overrides", index)
        if is_same and merge.slices is not None:
            inherited = {**merge.slices[0].parameters, **inherited}
        yield _Use(
            at, override.method or merge.method, override.parameters, inherited, count, override.weights is not None
        )


def _check_weights(use: _Use, method: MethodLike, document: Document) -> None:
    # weight-mix takes its shares as beta; ``select`` turns weights into beta.
    if use.is_weighted and not method.weighted and use.method != "weight-mix":
        at = (*use.at, "weights")
        raise document.error(f"'{spell(at)}': '{use.method}' does not take weights.", at=at, hint="Leave them out.")


def _check_sources(use: _Use, method: MethodLike, recipe: Recipe, document: Document) -> None:
    at = (*use.at, "method")
    least, most, count = method.min_sources, method.max_sources, use.num_sources
    if use.at[1:2] == ("overrides",) and use.method == recipe.merge.method:
        return
    if count < least or (most is not None and count > most):
        allowed = f"exactly {least}" if least == most else f"at least {least}" if count < least else f"at most {most}"
        plural = "" if (least if count < least else most) == 1 else "s"
        raise document.error(f"'{use.method}' takes {allowed} source{plural}, not {count}.", at=at)
    if method.base == "required" and recipe.base is None:
        hint = "Add 'base: hub:org/name', the language model that all sources started from."
        raise document.error(f"'{use.method}' needs a base.", at=at, hint=hint)


def _check_parameters(use: _Use, method: MethodLike, document: Document) -> None:
    known = {parameter.name: parameter for parameter in method.parameters}
    for parameters, at in ((use.parameters, use.at), (use.inherited, ("merge",))):
        for name, value in parameters.items():
            where = (*at, "parameters", name)
            if name not in known:
                hint = nearest_name(name, known) or f"'{use.method}' does not have parameters."
                raise document.error(f"'{use.method}' has no parameter '{name}'.", at=where, hint=hint)
            _check_value(value, known[name], document, at=where)
    for name, parameter in known.items():
        value = use.parameters.get(name, use.inherited.get(name))
        if not is_required(parameter):
            continue
        if value is None:
            raise document.error(f"'{use.method}' needs the parameter '{name}'.", at=(*use.at, "parameters"))
        if not _is_total(value):
            hint = "End the list with '{value: ...}', without a filter."
            where = (*use.at, "parameters", name)
            raise document.error(f"'{name}' has no value for some tensors.", at=where, hint=hint)


def _is_total(value: Any) -> bool:
    """Returns whether a value is defined for every tensor."""
    if isinstance(value, Mapping):
        return all(_is_total(item) for item in value.values())
    if isinstance(value, tuple) and isinstance(value[0], Choice):
        return any(choice.filter in {None, "*"} for choice in value)
    return True


def _check_value(value: Any, parameter: ParameterLike, document: Document, *, at: KeyPath) -> None:
    if not isinstance(value, Mapping):
        _check_scalars(value, parameter, document, at=at)
        return
    if not parameter.per_source:
        hint = "Write one value."
        raise document.error(f"'{parameter.name}' must be one value for all sources.", at=at, hint=hint)
    for source, item in value.items():
        _check_scalars(item, parameter, document, at=(*at, source))


def _check_scalars(value: Value, parameter: ParameterLike, document: Document, *, at: KeyPath) -> None:
    if parameter.kind is int and isinstance(value, tuple) and not isinstance(value[0], Choice):
        raise document.error(f"'{parameter.name}' must be one whole number; it cannot be a gradient.", at=at)
    for inner, scalar in scalars_of(value):
        where = (*at, *inner)
        if scalar in parameter.words:
            continue
        if parameter.choices and scalar not in parameter.choices:
            hint = nearest_name(str(scalar), parameter.choices)
            raise document.error(f"'{parameter.name}' cannot be '{scalar}'.", at=where, hint=hint)
        if not _is_kind(scalar, parameter.kind):
            shown = str(scalar).lower() if isinstance(scalar, bool) else f"'{scalar}'"
            kind = _KINDS.get(parameter.kind, parameter.kind.__name__)
            raise document.error(f"'{parameter.name}' must be {kind}, not {shown}.", at=where)
        if isinstance(scalar, bool | str):
            continue
        low, high = parameter.low, parameter.high
        if (low is not None and scalar < low) or (high is not None and scalar > high):
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise document.error(f"'{parameter.name}' is {scalar}; it must be {bounds}.", at=where)


def _is_kind(scalar: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(scalar, int | float) and not isinstance(scalar, bool)
    if kind is int:
        return isinstance(scalar, int) and not isinstance(scalar, bool)
    return isinstance(scalar, kind)
