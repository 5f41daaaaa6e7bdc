"""Registers the island's classes with transformers' Auto classes, so that no ``trust_remote_code`` is needed."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .configuration.composed import ComposedConfig
from .network.composed import ComposedForConditionalGeneration, ComposedModel
from .points.configuration import PointsConfig, PointsEncoderConfig
from .points.network import PointsForConditionalGeneration, PointsModel
from .points.processing import PointsProcessor
from .processing.composed import ComposedProcessor

__all__ = ["register"]


def register() -> None:
    """Registers configuration, models and processor; may be called again."""
    AutoConfig.register(ComposedConfig.model_type, ComposedConfig, exist_ok=True)
    AutoModel.register(ComposedConfig, ComposedModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM):
        auto.register(ComposedConfig, ComposedForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ComposedConfig, ComposedProcessor, exist_ok=True)
    AutoConfig.register(PointsEncoderConfig.model_type, PointsEncoderConfig, exist_ok=True)
    AutoConfig.register(PointsConfig.model_type, PointsConfig, exist_ok=True)
    AutoModel.register(PointsConfig, PointsModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM):
        auto.register(PointsConfig, PointsForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(PointsConfig, PointsProcessor, exist_ok=True)
