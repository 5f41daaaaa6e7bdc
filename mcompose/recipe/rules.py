"""Rules between the keys of a recipe, for every merge method: names exist, no source is missing, all is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcompose.errors import nearest_name
from mcompose.recipe.compose import check_compose
from mcompose.recipe.document import KeyPath
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import UNION

if TYPE_CHECKING:
    from mcompose.recipe.schema import MergeSpec, Recipe

__all__ = ["check_rules"]


def check_rules(recipe: Recipe) -> None:
    """Checks the keys of a recipe against each other.

    Args:
        recipe: The recipe.

    Raises:
        FieldError: A rule is broken; the error names the key.
    """
    names = recipe.source_names
    _check_sources(recipe)
    _check_settings(recipe.merge.weights, recipe.merge.parameters, names=names, at=("merge",))
    for index, override in enumerate(recipe.merge.overrides):
        at = ("merge", "overrides", index)
        _check_settings(override.weights, override.parameters, names=names, at=at)
    _check_slices(recipe)
    _check_weight_mix(recipe.merge, names)
    _check_tokenizer(recipe)
    check_compose(recipe)


def _check_sources(recipe: Recipe) -> None:
    seen: dict[str, int] = {}
    for index, source in enumerate(recipe.sources):
        if source.name in seen:
            raise FieldError(
                f"'{{path}}' is '{source.name}', as is 'sources[{seen[source.name]}].name'.",
                at=("sources", index, "name"),
                hint="Give each source a different name.",
            )
        seen[source.name] = index
        modalities = source.modalities or ()
        twice = [modality for number, modality in enumerate(modalities) if modality in modalities[:number]]
        if twice:
            raise FieldError(f"'{{path}}' names '{twice[0]}' twice.", at=("sources", index, "modalities"))


def _check_settings(
    weights: Mapping[str, Any] | None, parameters: Mapping[str, Any], *, names: Sequence[str], at: KeyPath
) -> None:
    """Checks that every mapping of sources to values names all sources and nothing else."""
    if weights is not None:
        _check_mapping(weights, names=names, at=(*at, "weights"))
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            _check_mapping(value, names=names, at=(*at, "parameters", name))


def _check_mapping(by_source: Mapping[str, Any], *, names: Sequence[str], at: KeyPath) -> None:
    for name in by_source:
        if name not in names:
            raise FieldError(
                f"'{{path}}': '{name}' is not a source.", at=(*at, name), hint=nearest_name(str(name), names)
            )
    missing = [name for name in names if name not in by_source]
    if missing:
        hint = f"Write '{missing[0]}: 0' to leave it out of the merge." if at[-1] == "weights" else ""
        raise FieldError(f"'{{path}}' leaves out the source '{missing[0]}'.", at=at, hint=hint)


def _check_slices(recipe: Recipe) -> None:
    if recipe.merge.slices and not sum(piece.num_layers for piece in recipe.merge.slices):
        raise FieldError("'{path}' have no layers.", at=("merge", "slices"), hint="Give one of them a range of layers.")
    for index, piece in enumerate(recipe.merge.slices or ()):
        at: KeyPath = ("merge", "slices", index)
        known = (*recipe.source_names, *(("base",) if recipe.base else ()))
        for number, entry in enumerate(piece.sources):
            here = (*at, "sources", number)
            if entry.source not in known:
                hint = nearest_name(entry.source, known)
                raise FieldError(f"'{{path}}': '{entry.source}' is not a source.", at=(*here, "source"), hint=hint)
            if entry.source in [other.source for other in piece.sources[:number]]:
                raise FieldError(f"'{{path}}': '{entry.source}' is in this slice twice.", at=(*here, "source"))
            if entry.num_layers != piece.num_layers:
                raise FieldError(
                    f"'{{path}}' has {entry.num_layers} layers, but the slice's first has {piece.num_layers}.",
                    at=(*here, "layer_range"),
                    hint="Give all ranges of a slice the same length.",
                )
        if not piece.names:
            raise FieldError("'{path}' has no source besides the base.", at=(*at, "sources"), hint="Add a source.")
        _check_settings(piece.weights, piece.parameters, names=piece.names, at=at)


def _check_weight_mix(merge: MergeSpec, names: Sequence[str]) -> None:
    """Checks weight-mix, beta * first + (1 - beta) * second: two sources, and either weights or beta."""
    for at, method, weights, parameters in _settings(merge):
        if method != "weight-mix":
            continue
        if len(names) != 2:
            raise FieldError(
                f"'{{path}}': weight-mix takes exactly two sources, not {len(names)}.",
                at=(*at, "method"),
                hint="Use 'linear' for more.",
            )
        if weights is not None and "beta" in parameters:
            raise FieldError(
                "'{path}' and 'weights' cannot both be set.",
                at=(*at, "parameters", "beta"),
                hint="Keep one of them; beta is the share of the first source.",
            )


def _settings(merge: MergeSpec) -> Iterable[tuple[KeyPath, str, Any, Mapping[str, Any]]]:
    """Yields key path, method, weights and parameters of the merge, then of each override."""
    yield ("merge",), merge.method, merge.weights, merge.parameters
    for index, override in enumerate(merge.overrides):
        method = override.method or merge.method
        inherited = merge.weights if override.weights is None else override.weights
        yield ("merge", "overrides", index), method, inherited, override.parameters


def _check_tokenizer(recipe: Recipe) -> None:
    name = recipe.merge.tokenizer
    known = (*recipe.source_names, *(("base",) if recipe.base else ()))
    if name is None or name in (*known, UNION):
        return
    hint = "Give the recipe a 'base'." if name == "base" else nearest_name(name, ("base", *recipe.source_names))
    raise FieldError(f"'{{path}}' is not the name of a source: '{name}'.", at=("merge", "tokenizer"), hint=hint)
