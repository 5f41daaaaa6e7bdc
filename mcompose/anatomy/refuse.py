"""Reasons in the config and the keys why a checkpoint cannot be a source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mcompose.anatomy.composed import group_part
from mcompose.anatomy.tables import exceptions, generated

__all__ = ["refuse_files", "refuse_type"]

_QUANTISED = re.compile(
    r"\.(?:qweight|qzeros|g_idx|SCB|weight_scale|weight_scale_inv|weight_packed|absmax|quant_map|quant_state.*)$"
)
_ADAPTER = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.|$)|\.lora_magnitude_vector")


def refuse_files(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Returns the reason, from how the weights are stored, why it cannot be a source; empty when there is none."""
    if "peft_type" in config or "base_model_name_or_path" in config:
        return "it is an adapter, not a model: write its base as `model` and the adapter as `adapter`"
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, Mapping) else str(quantised)
        return f"its weights are quantised ({method or 'unknown method'}); use the full-precision checkpoint"
    keys = list(keys)
    if config.get("routed_groups"):
        keys = [key for key in keys if not group_part(key)]  # low-rank factors that belong to the network itself
    adapters = sum(1 for key in keys if _ADAPTER.search(key))
    if adapters:
        content = "only low-rank adapters" if adapters == len(keys) else "low-rank adapters beside its weights"
        return f"its files contain {content}; fold them first, or write them as `adapter` of a source"
    if any(_QUANTISED.search(key) for key in keys):
        return "its weights are quantised; use the full-precision checkpoint"
    return ""


def refuse_type(config: Mapping[str, Any]) -> str:
    """Returns the reason, from its type, why a checkpoint cannot be a source; empty when there is none."""
    model_type = config["model_type"]
    outside = generated()["outside"]
    text = config.get("text_config")
    text_type = str(text.get("model_type", "")) if isinstance(text, Mapping) else ""
    if config.get("is_encoder_decoder") or outside.get(model_type) == "encoder-decoder":
        return "it is an encoder-decoder model: it does not have a decoder-only language model to share"
    if outside.get(text_type) == "encoder-decoder":
        return f"its language model '{text_type}' is an encoder-decoder: it cannot be shared"
    written = exceptions()["refusals"].get(model_type, "")
    if written:
        return written
    if outside.get(model_type) == "other":
        return "it does not have a language model that generates text"
    return ""
