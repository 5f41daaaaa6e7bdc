"""A source's own configuration object, by model type: from transformers, or from the island for its own types."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from ..points.configuration import PointsConfig
from ..vision_mix.configuration import VisionMixConfig

__all__ = ["native_config", "text_config_of"]

_OWN_CONFIGS: dict[str, Any] = {PointsConfig.model_type: PointsConfig, VisionMixConfig.model_type: VisionMixConfig}


def native_config(model_type: str, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns a fresh configuration object of a model type.

    Args:
        model_type: The source's model type.
        settings: Its configuration as a dictionary.

    Raises:
        ValueError: When the installed transformers does not know the model type.
    """
    values = copy.deepcopy(dict(settings))
    values.pop("model_type", None)
    if model_type in _OWN_CONFIGS:
        return _OWN_CONFIGS[model_type].from_dict(values)
    if (part := _part_config(model_type)) is not None:
        return part.from_dict(values)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} knows no model type {model_type!r}.")
    return CONFIG_MAPPING[model_type].from_dict(values)


def _part_config(model_type: str) -> Any:
    # Some encoders' types are known only inside the model that they come with (got_ocr2_vision of got_ocr2, in 5.19).
    if model_type in CONFIG_MAPPING:
        return None
    for whole in CONFIG_MAPPING:
        if model_type.startswith(f"{whole}_"):
            part = CONFIG_MAPPING[whole].sub_configs.get(f"{model_type.removeprefix(f'{whole}_')}_config")
            return None if part is AutoConfig else part
    return None


def text_config_of(settings: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> PreTrainedConfig:
    """Returns the language model's configuration object from its dictionary.

    Args:
        settings: The dictionary, with ``model_type`` (Llama when it names none).
        sources: The composition's sources: some language configurations exist only inside a multimodal one.

    Raises:
        ValueError: When neither transformers nor a source has a configuration class for it.
    """
    values = copy.deepcopy(dict(settings))
    kind = values.pop("model_type", "llama")
    if kind in CONFIG_MAPPING:
        return CONFIG_MAPPING[kind].from_dict(values)
    for entry in sources.values():
        text = native_config(entry["model_type"], entry["config"]).get_text_config(decoder=True)
        if text.model_type == kind:
            return type(text).from_dict(values)
    raise ValueError(f"transformers {transformers.__version__} knows no language model type {kind!r}.")
