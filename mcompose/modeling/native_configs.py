"""A source's own configuration object, by model type: from transformers, or from the island for the points source."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig

from .configuration_points import PointsConfig

__all__ = ["native_config"]

_ISLAND = {PointsConfig.model_type: PointsConfig}


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
    if model_type in _ISLAND:
        return _ISLAND[model_type].from_dict(values)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} knows no model type {model_type!r}.")
    return CONFIG_MAPPING[model_type].from_dict(values)
