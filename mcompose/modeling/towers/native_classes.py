"""A source's tower: the base model of its native class, without its language model.

The classes come from transformers' own mappings, and for the points source from the island. A tower is the base model
(encoders, projector and language model, no head) whose language model is never filled: it is built with no layers and
taken out.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_MAPPING, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from ..points.configuration import PointsConfig
from ..points.network import PointsModel

__all__ = ["build_encoder", "build_language_model", "build_native_tower", "set_attention"]

# By name: code that travels with a checkpoint may be loaded twice, and its classes are then not the same objects.
_OWN_MODELS = {PointsConfig.model_type: PointsModel}

logger = logging.get_logger(__name__)

# Text settings that are set to nothing while a tower is built.
_EMPTY_TEXT = {
    "num_hidden_layers": 0,
    "layer_types": [],
    "mlp_layer_types": [],
    "vocab_size": 1,
    "pad_token_id": None,
}


def build_native_tower(config: PreTrainedConfig, *, attn_implementation: str | None) -> PreTrainedModel:
    """Builds a source's base model without its language model.

    Args:
        config: The source's native configuration; left unchanged apart from dtype and attention implementation.
        attn_implementation: The composition's own; a tower that lacks it keeps what it has.

    Returns:
        The native base model, with names as in memory (``vision_tower...``, ``multi_modal_projector...``), in the
        default dtype.
    """
    cls = _base_class(config)
    dtype = torch.get_default_dtype()
    _set_dtype(config, dtype)
    text = config.get_text_config(decoder=True)
    kept = {key: getattr(text, key) for key in _EMPTY_TEXT if hasattr(text, key)}
    for key in kept:
        setattr(text, key, copy.copy(_EMPTY_TEXT[key]))
    try:
        tower = cls._from_config(config, dtype=dtype)
    finally:
        for key, value in kept.items():
            setattr(text, key, value)
    _keep_in_float32(tower)
    tower.__dict__["language_class"] = _take_out_language_model(tower)
    set_attention(tower, attn_implementation)
    return tower


def build_encoder(
    cls: type[PreTrainedModel], config: PreTrainedConfig, *, attn_implementation: str | None
) -> PreTrainedModel:
    """Builds a lone encoder of a native class, in the default dtype.

    Args:
        cls: The class.
        config: Its configuration; left unchanged apart from dtype and attention implementation.
        attn_implementation: The composition's own; an encoder that lacks it keeps what it has.
    """
    dtype = torch.get_default_dtype()
    _set_dtype(config, dtype)
    # Nothing reads a pooled output, and classification checkpoints do not even hold its weights.
    pooling = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    encoder = cls._from_config(config, dtype=dtype, **({"add_pooling_layer": False} if pooling else {}))
    set_attention(encoder, attn_implementation)
    return encoder


def _base_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if config.model_type in _OWN_MODELS:
        return _OWN_MODELS[config.model_type]
    for mapping in (MODEL_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found  # pyright: ignore[reportReturnType]
    raise ValueError(f"transformers {transformers.__version__} has no model class for {config.model_type!r}.")


def build_language_model(config: PreTrainedConfig, towers: Iterable[PreTrainedModel]) -> PreTrainedModel:
    """Builds the bare decoder of a language configuration.

    Args:
        config: The language model's configuration.
        towers: The composition's towers: some language classes exist only inside a multimodal one, and are then taken
            from a tower that came with it.

    Raises:
        ValueError: When neither transformers nor a tower has a class for it.
    """
    own = [tower for tower in towers if tower.config.get_text_config(decoder=True).model_type == config.model_type]
    for tower in own:
        _share_conversions(tower, config.model_type)
    if type(config) in MODEL_MAPPING:
        return AutoModel.from_config(config)
    for tower in own:
        return tower.__dict__["language_class"]._from_config(config)
    raise ValueError(f"transformers {transformers.__version__} has no language model class for {config.model_type!r}.")


def _share_conversions(tower: PreTrainedModel, text_type: str) -> None:
    """Registers what transformers does to a family's weights on loading for its language model alone.

    Experts that files hold one by one are fused in memory, by steps that some families register for the whole model.
    """
    if get_checkpoint_conversion_mapping(text_type) is not None:
        return
    kind = tower.config.model_type
    steps = get_checkpoint_conversion_mapping(type(tower).__name__) or get_checkpoint_conversion_mapping(kind) or []
    changing: list[Any] = [step for step in steps if isinstance(step, WeightConverter)]
    if changing:
        register_checkpoint_conversion_mapping(text_type, changing)


def _take_out_language_model(tower: PreTrainedModel) -> type[PreTrainedModel]:
    decoder = tower.get_decoder()
    head = tower.get_output_embeddings()
    for name, child in list(tower.named_children()):
        if child is decoder or child is head:
            delattr(tower, name)
            # What post_init gathered from it would name parameters that are gone.
            tower.all_tied_weights_keys = {
                key: value for key, value in tower.all_tied_weights_keys.items() if not key.startswith(name)
            }
    if any(child is decoder for child in tower.modules()):
        raise ValueError(
            f"{type(tower).__name__} does not hold its language model as a child; it cannot be lifted out."
        )
    return type(decoder)


def _keep_in_float32(tower: PreTrainedModel) -> None:
    # Some families say on the class with the head which modules of the base stay in float32 (Voxtral's positions).
    whole = MODEL_FOR_MULTIMODAL_LM_MAPPING.get(type(tower.config), None)
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        named = set(getattr(whole, attribute, None) or ())
        setattr(tower, attribute, set(getattr(tower, attribute) or ()) | named)


def _set_dtype(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    config.dtype = dtype
    for key in config.sub_configs:
        if (sub := getattr(config, key, None)) is not None:
            _set_dtype(sub, dtype)


def set_attention(tower: PreTrainedModel, attn_implementation: str | None) -> None:
    """Sets the attention implementation of a model and of all models inside; one that lacks it keeps what it has."""
    if attn_implementation is None:
        return
    for module in [m for m in tower.modules() if isinstance(m, PreTrainedModel)]:
        if not module._can_set_attn_implementation():
            continue
        try:
            chosen = module.get_correct_attn_implementation(attn_implementation)
        except (ValueError, ImportError) as error:
            logger.warning_once(
                f"{type(module).__name__} keeps {module.config._attn_implementation!r} attention: {error}"
            )
            continue
        module.config._attn_implementation_internal = chosen
