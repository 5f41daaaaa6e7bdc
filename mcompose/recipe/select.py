"""Selects the settings of one tensor: the merge's, then every override that matches it; later ones win.

A gradient is spread over the layers of its setting: all layers for the merge's settings, the slice's layers for a
slice's, the layers ``first`` to ``last`` for an override that names them. Tensors outside the layers get a gradient's
first value. This is mergekit's rule; the conformance tests compare the two.
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
        weights: One weight for each source, in the order of the call; None for 1/M each.
        parameters: Parameter name to value, or to a tuple with one value for each source. A parameter that the recipe
            does not set for this tensor is left out, so that the method's default applies.
    """

    method: str
    weights: tuple[float, ...] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Settings:
    """Settings so far, each with the position (0 to 1) at which its gradients are evaluated."""

    method: str
    weights: tuple[Mapping[str, Value], float] | None
    parameters: dict[str, tuple[Any, float]]


def file_name(name: str, *, part: str) -> str:
    """Returns a tensor's name as a language model's file spells it; filters are matched against this name."""
    return name if part == "head" else f"model.{name}"


def settings_for(
    merge: MergeSpec, *, sources: Sequence[str], part: str, layer: int | None, num_layers: int, name: str
) -> Setting:
    """Returns method, weights and parameters of one output tensor.

    Args:
        merge: The merge section of the recipe.
        sources: Names of the sources that have this tensor, in the recipe's order, without the base.
        part: ``language``, ``embedding``, ``head``, ``encoder`` or ``projector``.
        layer: Layer of the output; None outside the layers.
        num_layers: Number of layers of the output (of the encoder, for an encoder's tensor).
        name: Name of the tensor that the sources share: ``layers.0.self_attn.q_proj.weight``.

    Returns:
        The setting.

    Raises:
        RecipeError: A weight is missing for this tensor, or an override names layers that do not exist.
    """
    settings = _start(merge, part=part, layer=layer, num_layers=num_layers)
    for index, override in enumerate(merge.overrides):
        _check_layers(override.match, index, part=part, num_layers=num_layers)
        if _matches(override.match, part=part, layer=layer, name=name):
            _apply(settings, override, layer=layer, num_layers=num_layers)
    names = _source_names(merge, sources, part=part, layer=layer, name=name)
    # With one source, filters match its tensor name, whose layer may differ from the output's with slices.
    output_name = names[sources[0]] if len(sources) == 1 else file_name(name, part=part)
    weights = None
    if settings.weights is not None:
        weights = tuple(_weight(settings.weights, source, names[source]) for source in sources)
    parameters: dict[str, Any] = {}
    for key, (value, position) in settings.parameters.items():
        chosen = _parameter(value, names=names, output_name=output_name, position=position)
        if chosen is not None:
            parameters[key] = chosen
    if settings.method == "weight-mix" and weights is not None:
        weights, parameters = None, {**parameters, "beta": _beta(weights, name)}
    return Setting(settings.method, weights, parameters)


def _start(merge: MergeSpec, *, part: str, layer: int | None, num_layers: int) -> _Settings:
    """Returns the merge's settings, overridden by those of the tensor's slice."""
    place = find_slice(merge, part=part, layer=layer)
    position = layer_position(layer, first=0, last=num_layers - 1)
    if place is None:
        weights = None if merge.weights is None else (merge.weights, position)
        return _Settings(merge.method, weights, {key: (value, position) for key, value in merge.parameters.items()})
    position = layer_position(place.offset, first=0, last=place.piece.num_layers - 1)
    slice_weights = merge.weights if place.piece.weights is None else place.piece.weights
    parameters = {**merge.parameters, **place.piece.parameters}
    return _Settings(
        merge.method,
        None if slice_weights is None else (slice_weights, position),
        {key: (value, position) for key, value in parameters.items()},
    )


def _apply(settings: _Settings, override: Override, *, layer: int | None, num_layers: int) -> None:
    first, last = override.match.layers or (0, num_layers - 1)
    position = layer_position(layer, first=first, last=last)
    if override.method is not None and override.method != settings.method:
        settings.method = override.method
        settings.parameters = {}
    if override.weights is not None:
        settings.weights = (override.weights, position)
    for key, value in override.parameters.items():
        settings.parameters[key] = (value, position)


def _matches(match: Match, *, part: str, layer: int | None, name: str) -> bool:
    if match.part is not None and match.part != part:
        return False
    if match.layers is not None:
        if match.part is None and part == "encoder":  # layers without a part are those of the language model
            return False
        if layer is None or not match.layers[0] <= layer <= match.layers[1]:
            return False
    return match.key is None or fnmatchcase(name, match.key)


def _check_layers(match: Match, index: int, *, part: str, num_layers: int) -> None:
    """Refuses an override for layers that do not exist."""
    is_relevant = match.part == part or (match.part is None and part == "language")
    if match.layers is not None and is_relevant and match.layers[1] >= num_layers:
        raise RecipeError(
            f"'merge.overrides[{index}].match.layers' names layer {match.layers[1]}, "
            f"but there are only {num_layers} layers.",
            hint=f"Layers run from 0 to {num_layers - 1}.",
        )


def _source_names(
    merge: MergeSpec, sources: Sequence[str], *, part: str, layer: int | None, name: str
) -> dict[str, str]:
    """Returns the tensor name that filters match for each source; with slices its layer differs from the output's."""
    place = find_slice(merge, part=part, layer=layer)
    names: dict[str, str] = {}
    for source in sources:
        spelled = name
        if place is not None and place.layers is not None and source in place.layers:
            spelled = name.replace(f"layers.{layer}.", f"layers.{place.layers[source]}.", 1)
        names[source] = file_name(spelled, part=part)
    return names


def _weight(weights_at: tuple[Mapping[str, Value], float], source: str, name: str) -> float:
    weights, position = weights_at
    chosen = evaluate(weights[source], name=name, position=position) if source in weights else None
    if chosen is None:
        raise RecipeError(
            f"'merge.weights' does not have a weight of '{source}' for '{name}'.",
            hint="End the list with '{value: ...}', without a filter.",
        )
    return float(chosen)


def _beta(weights: tuple[float, ...], name: str) -> float:
    """Returns weight-mix's beta, the share of the first source, from weights."""
    if len(weights) == 2 and abs(sum(weights) - 1) > 1e-6:
        raise RecipeError(
            f"'merge.weights' of weight-mix add up to {sum(weights):g} for '{name}'.",
            hint="Make them add up to 1, or write 'parameters: {beta: ...}' instead.",
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
            f"A parameter has values for only some sources of '{output_name}'.",
            hint="End each source's list with '{value: ...}', without a filter.",
        )
    return chosen
