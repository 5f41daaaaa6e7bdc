"""Outputs that are a class of transformers itself: the owner's class, or the language model alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import patch_json
from mcompose.errors import CompositionError

if TYPE_CHECKING:
    from mcompose.checkpoint import StagedOutput
    from mcompose.compose.blueprint import Blueprint
    from mcompose.merge import SourceParts

__all__ = ["copy_sidecars", "write_native", "write_text_model"]


def write_native(staged: StagedOutput, blueprint: Blueprint, *, dtype: str | None) -> None:
    """Writes config and sidecars of an output that keeps its owner's class.

    Args:
        staged: The output.
        blueprint: What was decided.
        dtype: The recipe's dtype; None keeps the owner's.
    """
    config = blueprint.owner.checkpoint.folder / "config.json"
    staged.write_file("config.json", patch_json(config, _config_changes(blueprint, dtype)))
    copy_sidecars(staged, blueprint.owner)
    for path in blueprint.owner.checkpoint.code():
        staged.copy_file(path, path.name)


def _config_changes(blueprint: Blueprint, dtype: str | None) -> dict[str, Any]:
    """What differs from the owner's config: dtype and, where slices changed it, the number of layers."""
    config = blueprint.owner.checkpoint.config
    changes: dict[str, Any] = {}
    if dtype:
        changes["dtype"] = dtype
        if "torch_dtype" in config:
            changes["torch_dtype"] = None
    layers = blueprint.num_layers
    if layers == blueprint.owner.anatomy.num_layers:
        return changes
    if "text_config" in config:
        changes["text_config"] = _with_layers(config["text_config"], layers)
    else:
        changes.update(_with_layers(config, layers))
    return changes


def _with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """A language config with another depth; per-layer lists are cut or repeated to fit."""
    changed = {**config, "num_hidden_layers": layers}
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds and len(kinds) != layers:
        changed["layer_types"] = [kinds[k % len(kinds)] for k in range(layers)]
    return changed


def copy_sidecars(staged: StagedOutput, source: SourceParts) -> None:
    """Copies tokenizer, processor, templates and generation config of one source."""
    for path in source.checkpoint.sidecars():
        staged.copy_file(path, path.relative_to(source.checkpoint.folder).as_posix())


def write_text_model(staged: StagedOutput, blueprint: Blueprint, *, dtype: str | None) -> None:
    """Writes config and sidecars of the language model alone.

    Args:
        staged: The output.
        blueprint: What was decided.
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
        "tie_word_embeddings": owner.anatomy.tied,
        "vocab_size": blueprint.vocabulary.rows,
    }
    config = _with_layers(config, blueprint.num_layers)
    if dtype:
        config["dtype"] = dtype
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
