"""Outputs that are a class of transformers itself: the owner's class, or the language model alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import patch_json
from mcompose.dtypes import FLOAT_NAMES
from mcompose.errors import CompositionError

if TYPE_CHECKING:
    from mcompose.checkpoint import StagedOutput
    from mcompose.compose.blueprint import Blueprint
    from mcompose.merge import SourceParts

__all__ = ["layer_changes", "write_native", "write_text_model"]

DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How configs spell the number of decoder layers."""

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""How configs spell the language model's own table."""

NOT_BY_LAYER = ("architectures", "token_id", "token_ids")
"""Ends of the names of lists that may be as long as the model is deep, and have nothing to do with its layers."""


def write_native(staged: StagedOutput, blueprint: Blueprint, *, dtype: str | None) -> None:
    """Writes config and sidecars of an output that keeps its owner's class.

    Args:
        staged: The output.
        blueprint: Decisions about the output.
        dtype: The recipe's dtype; None keeps the owner's.
    """
    config = blueprint.owner.checkpoint.folder / "config.json"
    staged.write_file("config.json", patch_json(config, _config_changes(blueprint, dtype)))
    _copy_sidecars(staged, blueprint.owner)
    for path in blueprint.owner.checkpoint.code():
        staged.copy_file(path, path.name)


def _config_changes(blueprint: Blueprint, dtype: str | None) -> dict[str, Any]:
    """Returns what differs from the owner's config: the dtype, the tie of head and embedding, the layers."""
    owner = blueprint.owner
    config = owner.checkpoint.config
    changes: dict[str, Any] = {}
    dtype = dtype or _other_dtype(blueprint)
    if dtype:
        changes["dtype"] = dtype
        if "torch_dtype" in config:
            changes["torch_dtype"] = None
    if config.get("routed_groups"):
        changes.update(routed_groups=None, routed_base=None)  # only the composed format holds groups
    place = _text_place(config)
    text = _at(config, place)
    inner = layer_changes(text, blueprint.layers, depth=owner.anatomy.num_layers)
    if _tie_changes(config, place, blueprint):
        inner["tie_word_embeddings"] = blueprint.tied
        for level in range(len(place)):  # readers ask the outer or the inner one
            changes = _merged(changes, config, place[:level], {"tie_word_embeddings": blueprint.tied})
    return _merged(changes, config, place, inner)


def _tie_changes(config: Mapping[str, Any], place: Sequence[str], blueprint: Blueprint) -> bool:
    """Returns whether the owner's config, or half of it, says what the output's files do not."""
    if blueprint.tied != blueprint.owner.anatomy.declared_tied:
        return True
    stated = [_at(config, place[:level]).get("tie_word_embeddings") for level in range(len(place) + 1)]
    return not blueprint.tied and True in stated


def _text_place(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields that lead to the language model's config; none when it is the config itself."""
    place: tuple[str, ...] = ()
    for names in (("thinker_config",), TEXT_CONFIGS):
        table = _at(config, place)
        place += tuple(name for name in names if isinstance(table.get(name), dict))[:1]
    return place


def _at(config: Mapping[str, Any], place: Sequence[str]) -> Mapping[str, Any]:
    for name in place:
        config = config[name]
    return config


def _merged(
    changes: Mapping[str, Any], config: Mapping[str, Any], place: Sequence[str], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the changes of a config with fields of one of its nested tables added."""
    if not place:
        return {**changes, **fields}
    if not fields:
        return dict(changes)
    name, *rest = place
    inner = config[name]
    made = _merged(changes.get(name, inner), inner, rest, fields)
    return {**changes, name: {**inner, **made}}


def _other_dtype(blueprint: Blueprint) -> str | None:
    """Returns the output's dtype, where it is not that of the owner's weights, which its config speaks of."""
    table = blueprint.owner.embedding
    assert table is not None, "its rows were counted"
    dtype = blueprint.dtype
    return None if dtype == FLOAT_NAMES.get(blueprint.owner.entry(table.key).dtype) else dtype


def layer_changes(config: Mapping[str, Any], layers: Sequence[int], *, depth: int) -> dict[str, Any]:
    """Returns a language config's new depth; what it lists layer by layer follows the layers to their new places.

    Args:
        config: The language config.
        layers: For each decoder layer of the output, the source layer whose place it takes.
        depth: Decoder layers so far; the config may leave them to its class's default.

    Returns:
        The fields to change; none when the layers stay as they are.
    """
    if tuple(layers) == tuple(range(depth)):
        return {}
    spelling = next((name for name in DEPTH if name in config), DEPTH[0])
    lists = {
        name: [value[layer] for layer in layers]
        for name, value in config.items()
        if isinstance(value, list) and len(value) == depth and not name.endswith(NOT_BY_LAYER)
    }
    return {spelling: len(layers), **lists}


def _copy_sidecars(staged: StagedOutput, source: SourceParts) -> None:
    """Copies tokenizer, processor, templates and generation config of one source."""
    for path in source.checkpoint.sidecars():
        staged.copy_file(path, path.relative_to(source.checkpoint.folder).as_posix())


def write_text_model(staged: StagedOutput, blueprint: Blueprint, *, dtype: str | None) -> None:
    """Writes config and sidecars of the language model alone.

    Args:
        staged: The output.
        blueprint: Decisions about the output.
        dtype: The recipe's dtype; None keeps the owner's.

    Raises:
        CompositionError: The owner's language model has no text class of its own.
    """
    owner = blueprint.owner
    if not owner.anatomy.modalities:
        write_native(staged, blueprint, dtype=dtype)
        return
    model_type = str(owner.anatomy.text_config["model_type"])
    config = {
        "architectures": [_causal_class(model_type, owner.name)],
        **owner.anatomy.text_config,
        "model_type": model_type,
        "tie_word_embeddings": blueprint.tied,
        "vocab_size": blueprint.vocabulary.rows,
        "dtype": dtype or blueprint.dtype,
    }
    config.update(layer_changes(config, blueprint.layers, depth=owner.anatomy.num_layers))
    staged.write_file("config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for path in owner.checkpoint.sidecars():
        name = path.relative_to(owner.checkpoint.folder).as_posix()
        if "processor" not in name:
            staged.copy_file(path, name)


def _causal_class(model_type: str, source: str) -> str:
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - seconds, for this format only
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    except KeyError:
        raise CompositionError(
            f"The language model of '{source}' ({model_type}) has no text class in transformers.",
            hint="Name the text-only `base` in the recipe, whose class the output then keeps.",
        ) from None
