"""Resolves a recipe: fills in commits and defaults, and writes it as a recipe that can be loaded again.

Local references stay relative to the authored recipe's folder, so that a resolved recipe does not contain paths of a
machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from mcompose.recipe.adapters import AdapterSpec
from mcompose.recipe.check import MethodLike, is_required
from mcompose.recipe.document import FLOAT_PATTERN
from mcompose.recipe.schema import Recipe, Resolved
from mcompose.recipe.values import Choice
from mcompose.refs import ModelRef

__all__ = ["recipe_text", "resolve", "resolve_text"]

_HEADER = "# Resolved by mcompose: commits and defaults filled in. The authored recipe is recipe.yaml.\n"


class _Dumper(yaml.SafeDumper):
    """``SafeDumper`` that quotes text such as ``1e5``, which the loader would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{FLOAT_PATTERN.pattern})$"), list("-+0123456789.")
)
# PyYAML writes U+0085 as it stands, and its reader takes it for a line break: only an escape survives.
_Dumper.add_representer(
    str,
    lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None),
)
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, dict | list) for item in data)
    ),
)


def resolve(
    recipe: Recipe,
    *,
    commits: Mapping[str, str],
    digests: Mapping[str, Mapping[str, str]] | None = None,
    catalogue: Mapping[str, MethodLike] | None = None,
) -> Recipe:
    """Fills in commits, digests and the merge method's defaults.

    Args:
        recipe: The authored recipe.
        commits: Source name to commit; ``base`` for the base, ``<source>:adapter`` for a source's adapter,
            ``expert:<name>`` for an expert or a mixed encoder, ``adapter:<set>:<number>`` for a LoRA. Local references
            do not have one.
        digests: Source name (or ``base``) to file to ``sha256:...``.
        catalogue: Method name to method; without it, the merge method's defaults are not filled in.

    Returns:
        A new recipe.
    """
    sources = tuple(
        source.model_copy(
            update={
                "model": _pin(source.model, commits.get(source.name)),
                "adapter": _pin(source.adapter, commits.get(f"{source.name}:adapter")),
            }
        )
        for source in recipe.sources
    )
    method = (catalogue or {}).get(recipe.merge.method)
    defaults = {
        parameter.name: parameter.default
        for parameter in (method.parameters if method else ())
        if not is_required(parameter) and parameter.default is not None
    }
    if recipe.merge.method == "weight-mix" and recipe.merge.weights is not None:
        defaults.pop("beta", None)
    merge = recipe.merge.model_copy(update={"parameters": {**defaults, **recipe.merge.parameters}})
    plain = {name: dict(files) for name, files in (digests or {}).items()}
    base = _pin(recipe.base, commits.get("base"))
    compose = recipe.compose
    if compose.experts:
        pinned = {
            name: expert.model_copy(update={"encoder": _pin(expert.encoder, commits.get(f"expert:{name}"))})
            for name, expert in compose.experts.items()
        }
        compose = compose.model_copy(update={"experts": pinned})
    if compose.vision_mix is not None:
        mixed = {
            name: encoder.model_copy(update={"encoder": _pin(encoder.encoder, commits.get(f"expert:{name}"))})
            for name, encoder in compose.vision_mix.encoders.items()
        }
        compose = compose.model_copy(update={"vision_mix": compose.vision_mix.model_copy(update={"encoders": mixed})})
    if compose.adapters:
        sets = {name: _pin_loras(name, spec, commits) for name, spec in compose.adapters.items()}
        compose = compose.model_copy(update={"adapters": sets})
    update = {"base": base, "sources": sources, "merge": merge, "compose": compose}
    update["resolved"] = Resolved(digests=plain)
    return recipe.model_copy(update=update)


def recipe_text(recipe: Recipe) -> str:
    """Writes a recipe as YAML with all defaults; ``load_recipe`` reads an equal recipe from it."""
    return yaml.dump(_plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def resolve_text(
    recipe: Recipe,
    *,
    commits: Mapping[str, str],
    digests: Mapping[str, Mapping[str, str]] | None = None,
    catalogue: Mapping[str, MethodLike] | None = None,
) -> str:
    """Writes the resolved recipe as YAML; see ``resolve`` for the arguments.

    Returns:
        Text that ``load_recipe`` reads as ``resolve(...)`` of the same arguments.
    """
    return _HEADER + recipe_text(resolve(recipe, commits=commits, digests=digests, catalogue=catalogue))


def _pin_loras(name: str, spec: AdapterSpec, commits: Mapping[str, str]) -> AdapterSpec:
    if spec.init is None:
        return spec
    pinned = [_pin(ref, commits.get(f"adapter:{name}:{number}")) for number, ref in enumerate(spec.init)]
    return spec.model_copy(update={"init": tuple(pinned)})


def _pin(ref: ModelRef | None, commit: str | None) -> ModelRef | None:
    if ref is None or ref.kind != "hub" or not commit:
        return ref
    return ModelRef("hub", ref.location, commit)


def _plain(value: Any) -> Any:
    """Converts values to those of YAML; keys whose value is None are left out, because None is their default."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        pairs = ((info.alias or name, getattr(value, name)) for name, info in fields.items())
        return {key: _plain(item) for key, item in pairs if item is not None}
    if isinstance(value, ModelRef):
        return str(value)
    if isinstance(value, Choice):
        head = {} if value.filter is None else {"filter": value.filter}
        return {**head, "value": _plain(value.value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
