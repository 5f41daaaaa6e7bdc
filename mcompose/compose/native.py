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
    inner = {}
    if blueprint.tied != owner.anatomy.tied:
        inner["tie_word_embeddings"] = changes["tie_word_embeddings"] = blueprint.tied
    text = config.get("text_config", config)
    inner.update(layer_changes(text, blueprint.layers, depth=owner.anatomy.num_layers))
    if "text_config" not in config:
        changes.update(inner)
    elif inner:
        changes["text_config"] = {**text, **inner}
    return changes


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
