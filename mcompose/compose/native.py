"""Outputs that are a class of transformers itself: the owner's class, or the language model alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import patch_json
from mcompose.compose.config_tables import merged, table_at, text_place
from mcompose.dtypes import FLOAT_NAMES
from mcompose.errors import CompositionError

if TYPE_CHECKING:
    from mcompose.checkpoint import StagedOutput
    from mcompose.compose.blueprint import Blueprint
    from mcompose.merge import SourceParts

__all__ = ["write_native", "write_text_model"]


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
    place = text_place(config)
    inner = dict(blueprint.moved.fields)
    if _tie_changes(config, place, blueprint):
        inner["tie_word_embeddings"] = blueprint.tied
        for level in range(len(place)):  # readers ask the outer or the inner one
            changes = merged(changes, config, place[:level], {"tie_word_embeddings": blueprint.tied})
    return merged(changes, config, place, inner)


def _tie_changes(config: Mapping[str, Any], place: Sequence[str], blueprint: Blueprint) -> bool:
    """Returns whether the owner's config, or half of it, says what the output's files do not."""
    if blueprint.tied != blueprint.owner.anatomy.declared_tied:
        return True
    stated = [table_at(config, place[:level]).get("tie_word_embeddings") for level in range(len(place) + 1)]
    return not blueprint.tied and True in stated


def _other_dtype(blueprint: Blueprint) -> str | None:
    """Returns the output's dtype, where it is not that of the owner's weights, which its config speaks of."""
    table = blueprint.owner.embedding
    assert table is not None, "its rows were counted"
    dtype = blueprint.dtype
    return None if dtype == FLOAT_NAMES.get(blueprint.owner.entry(table.key).dtype) else dtype


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
    config.update(blueprint.moved.fields)
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
