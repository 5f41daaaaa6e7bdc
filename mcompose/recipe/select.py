"""Which settings one tensor gets: the merge's, then every override that matches it, the later over the earlier.

Gradients are laid over the layers that the setting is for: all layers for the merge's own, the layers of a slice for a
slice's, the layers between ``first`` and ``last`` for an override that names them. Tensors outside the layers take a
gradient's first value. That is mergekit's rule, checked against it in the conformance tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from mcompose.errors import RecipeError
from mcompose.recipe.schema import Match, MergeSpec, Override
from mcompose.recipe.slices import find_slice
from mcompose.recipe.values import Scalar, Value, evaluate, layer_position

__all__ = ["Setting", "file_name", "settings_for"]


@dataclass(frozen=True)
class Setting:
    """The settings of one tensor.

    Args:
        method: Name of the merge method.
        weights: One weight a source, in the order asked for; None for 1/M.
        parameters: Parameter name to value, or to a tuple with one value a source. A parameter that the recipe does
            not give (for this tensor) is left out: the method's default holds.
    """

    method: str
    weights: tuple[float, ...] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Given:
    """Settings so far, each with the position at which its gradients are read."""

    method: str
    weights: tuple[Mapping[str, Value], float] | None
    parameters: dict[str, tuple[Any, float]]


def file_name(name: str, *, part: str) -> str:
    """A tensor's name as a language model's file spells it, which filters are looked for in."""
    return name if part == "head" else f"model.{name}"


def settings_for(
    merge: MergeSpec, *, sources: Sequence[str], part: str, layer: int | None, num_layers: int, name: str
) -> Setting:
    """Method, weights and parameters of one output tensor.

    Args:
        merge: The merge.
        sources: Names of the sources that take part in this tensor, in the recipe's order, without the base.
        part: ``language``, ``embedding``, ``head``, ``encoder`` or ``projector``.
        layer: Layer of the output; None outside the layers.
        num_layers: Layers of the output (of the encoder, for an encoder's tensor).
        name: The tensor's shared name: ``layers.0.self_attn.q_proj.weight``.

    Returns:
        The setting.

    Raises:
        RecipeError: A weight is not said for this tensor, or an override names layers that do not exist.
    """
    given = _start(merge, part=part, layer=layer, num_layers=num_layers)
    for index, override in enumerate(merge.overrides):
        _check_layers(override.match, index, part=part, num_layers=num_layers)
        if _matches(override.match, part=part, layer=layer, name=name):
            _apply(given, override, layer=layer, num_layers=num_layers)
    names = _source_names(merge, sources, part=part, layer=layer, name=name)
    # The only source of a tensor is what a filter speaks of, and with slices its layer may be another.
    output_name = names[sources[0]] if len(sources) == 1 else file_name(name, part=part)
    weights = None
    if given.weights is not None:
        weights = tuple(_weight(given.weights, source, names[source]) for source in sources)
    parameters: dict[str, Any] = {}
    for key, (value, position) in given.parameters.items():
        chosen = _parameter(value, names=names, output_name=output_name, position=position)
        if chosen is not None:
            parameters[key] = chosen
    if given.method == "weight-mix" and weights is not None:
        weights, parameters = None, {**parameters, "beta": _beta(weights, name)}
    return Setting(given.method, weights, parameters)


def _start(merge: MergeSpec, *, part: str, layer: int | None, num_layers: int) -> _Given:
    """The merge's own settings, with those of the tensor's slice over them."""
    place = find_slice(merge, part=part, layer=layer)
    position = layer_position(layer, first=0, last=num_layers - 1)
    if place is None:
        weights = None if merge.weights is None else (merge.weights, position)
        return _Given(merge.method, weights, {key: (value, position) for key, value in merge.parameters.items()})
    inside = layer_position(place.offset, first=0, last=place.piece.num_layers - 1)
    mine = merge.weights if place.piece.weights is None else place.piece.weights
    parameters = {**merge.parameters, **place.piece.parameters}
    return _Given(
        merge.method,
        None if mine is None else (mine, inside),
        {key: (value, inside) for key, value in parameters.items()},
    )


def _apply(given: _Given, override: Override, *, layer: int | None, num_layers: int) -> None:
    first, last = override.match.layers or (0, num_layers - 1)
    position = layer_position(layer, first=first, last=last)
    if override.method is not None and override.method != given.method:
        given.method = override.method
        given.parameters = {}
    if override.weights is not None:
        given.weights = (override.weights, position)
    for key, value in override.parameters.items():
        given.parameters[key] = (value, position)


def _matches(match: Match, *, part: str, layer: int | None, name: str) -> bool:
    if match.part is not None and match.part != part:
        return False
    if match.layers is not None and (layer is None or not match.layers[0] <= layer <= match.layers[1]):
        return False
    return match.key is None or fnmatchcase(name, match.key)


def _check_layers(match: Match, index: int, *, part: str, num_layers: int) -> None:
    """An override for layers that do not exist would never act; the recipe means something else."""
    is_meant = match.part == part or (match.part is None and part == "language")
    if match.layers is not None and is_meant and match.layers[1] >= num_layers:
        raise RecipeError(
            f"'merge.overrides[{index}].match.layers' names layer {match.layers[1]}; there are {num_layers} layers.",
            hint=f"Layers run from 0 to {num_layers - 1}.",
        )


def _source_names(
    merge: MergeSpec, sources: Sequence[str], *, part: str, layer: int | None, name: str
) -> dict[str, str]:
    """The name that a filter sees for each source: with slices, its layer differs from the output's."""
    place = find_slice(merge, part=part, layer=layer)
    names: dict[str, str] = {}
    for source in sources:
        spelled = name
        if place is not None and place.layers is not None and source in place.layers:
            spelled = name.replace(f"layers.{layer}.", f"layers.{place.layers[source]}.", 1)
        names[source] = file_name(spelled, part=part)
    return names


def _weight(given: tuple[Mapping[str, Value], float], source: str, name: str) -> float:
    weights, position = given
    chosen = evaluate(weights[source], name=name, position=position) if source in weights else None
    if chosen is None:
        raise RecipeError(
            f"'merge.weights' says no weight of '{source}' for '{name}'.",
            hint="End the list with '{value: ...}', without a filter.",
        )
    return float(chosen)


def _beta(weights: tuple[float, ...], name: str) -> float:
    """weight-mix's share of the first source, where the recipe says the shares as weights."""
    if len(weights) == 2 and abs(sum(weights) - 1) > 1e-6:
        raise RecipeError(
            f"'merge.weights' of weight-mix add up to {sum(weights):g} for '{name}'.",
            hint="They are shares and add up to 1; or write 'parameters: {beta: ...}'.",
        )
    return weights[0]


def _parameter(
    value: Any, *, names: Mapping[str, str], output_name: str, position: float
) -> Scalar | tuple[Any, ...] | None:
    if not isinstance(value, Mapping):
        return evaluate(value, name=output_name, position=position)
    chosen = tuple(
        evaluate(value[source], name=name, position=position) if source in value else None
        for source, name in names.items()
    )
    if all(item is None for item in chosen):
        return None
    if any(item is None for item in chosen):
        raise RecipeError(
            f"A parameter is said for some sources of '{output_name}' only.",
            hint="End each source's list with '{value: ...}', without a filter.",
        )
    return chosen
