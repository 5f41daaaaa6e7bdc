"""The composed network and its processor: a self-contained island that travels with every composed checkpoint.

Its files need torch and transformers only, and import each other relatively. ``configuration/`` says what a composition
is, ``network/`` runs it, ``processing/`` prepares its text and media; ``towers/``, ``positions/``, ``groups/`` and
``experts/`` are parts of these, and ``points/`` is a small model of point clouds. A checkpoint gets at most six
files that ``bundle.py`` generates from them (``generate_files``); there they load by ``trust_remote_code``. With
mcompose installed, ``register()`` makes transformers' Auto classes know the classes, and no flag is needed.

Importing this package imports neither torch nor transformers; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.layer import adapt_encoder, adapter_sets
    from .bundle import generate_files
    from .configuration.composed import AUTO_MAP, ComposedConfig, composed_config, stored_source
    from .configuration.native import native_config
    from .experts.configuration import DOMAIN_TOKENS, NONE, SLOT_TOKEN, expert_token
    from .experts.encoder import encoder_class, encoder_width, hidden_states, missing_layer
    from .experts.expert import Expert, initial_values
    from .experts.hidden_tokens import add_mask_token
    from .experts.onnx_encoder import MAIN_INPUTS, OnnxEncoder
    from .experts.onnx_graph import Graph, Value, cut_graph, read_graph
    from .experts.processing import (
        AUTO,
        ExpertMedia,
        add_expert_tokens,
        expert_summary,
        load_item_processor,
        native_inputs,
    )
    from .experts.projectors import build_projector
    from .experts.router import ItemCounts, encoders_of
    from .families import EXPERT_TYPE, TYPE_IDS, VISION_MIX_TYPE, Family, family_of, refusal, text_family_of
    from .groups.editing import add_groups, fold_text, group_parameters
    from .groups.linear import ROUTE, RoutedLinear, route_language, routed_linears
    from .groups.specs import TEXT, GroupSpec, base_key, group_keys, group_specs
    from .groups.weight_routing import make_route
    from .names import SEPARATOR
    from .network.composed import ComposedForConditionalGeneration, ComposedModel
    from .points.configuration import PointsConfig
    from .points.network import PointsForConditionalGeneration
    from .points.processing import PointsProcessor
    from .prefixes.network import add_prefixes
    from .prefixes.tokens import prefix_fields
    from .processing.chat import DEFAULT_TEMPLATE
    from .processing.composed import (
        ComposedProcessor,
        add_placeholders,
        build_processor,
        structure_ids,
        write_processor,
    )
    from .processing.frames import FramesProcessor
    from .processing.load import load_source_processor
    from .processing.native_calls import (
        call_processor,
        processor_modalities,
        processor_placeholder,
        sampling_rate,
        takes_flat_options,
        without_second_bos,
    )
    from .processing.sources import copy_source_processor, load_own_processor
    from .towers.build import build_tower
    from .towers.input_dtype import in_weights_dtype
    from .towers.native_classes import build_encoder
    from .vision_mix.configuration import VisionMixConfig, view_tokens
    from .vision_mix.encoders import MixedEncoder
    from .vision_mix.network import VisionMixModel
    from .vision_mix.processing import VisionMixProcessor
    from .vision_mix.source_views import SourceViews
    from .vision_mix.views import largest_grid

__all__ = [
    "AUTO",
    "AUTO_MAP",
    "DEFAULT_TEMPLATE",
    "DOMAIN_TOKENS",
    "EXPERT_TYPE",
    "MAIN_INPUTS",
    "NONE",
    "ROUTE",
    "SEPARATOR",
    "SLOT_TOKEN",
    "TEXT",
    "TYPE_IDS",
    "VISION_MIX_TYPE",
    "ComposedConfig",
    "ComposedForConditionalGeneration",
    "ComposedModel",
    "ComposedProcessor",
    "Expert",
    "ExpertMedia",
    "Family",
    "FramesProcessor",
    "Graph",
    "GroupSpec",
    "ItemCounts",
    "MixedEncoder",
    "OnnxEncoder",
    "PointsConfig",
    "PointsForConditionalGeneration",
    "PointsProcessor",
    "RoutedLinear",
    "SourceViews",
    "Value",
    "VisionMixConfig",
    "VisionMixModel",
    "VisionMixProcessor",
    "adapt_encoder",
    "adapter_sets",
    "add_expert_tokens",
    "add_groups",
    "add_mask_token",
    "add_placeholders",
    "add_prefixes",
    "base_key",
    "build_encoder",
    "build_processor",
    "build_projector",
    "build_tower",
    "call_processor",
    "composed_config",
    "copy_source_processor",
    "cut_graph",
    "encoder_class",
    "encoder_width",
    "encoders_of",
    "expert_summary",
    "expert_token",
    "family_of",
    "fold_text",
    "generate_files",
    "group_keys",
    "group_parameters",
    "group_specs",
    "hidden_states",
    "in_weights_dtype",
    "initial_values",
    "largest_grid",
    "load_item_processor",
    "load_own_processor",
    "load_source_processor",
    "make_route",
    "missing_layer",
    "native_config",
    "native_inputs",
    "prefix_fields",
    "processor_modalities",
    "processor_placeholder",
    "read_graph",
    "refusal",
    "register",
    "route_language",
    "routed_linears",
    "sampling_rate",
    "stored_source",
    "structure_ids",
    "takes_flat_options",
    "text_family_of",
    "view_tokens",
    "without_second_bos",
    "write_processor",
]

_HOME = {
    "adapt_encoder": "adapters.layer",
    "adapter_sets": "adapters.layer",
    "AUTO": "experts.processing",
    "DEFAULT_TEMPLATE": "processing.chat",
    "EXPERT_TYPE": "families",
    "Expert": "experts.expert",
    "ExpertMedia": "experts.processing",
    "FramesProcessor": "processing.frames",
    "Graph": "experts.onnx_graph",
    "ItemCounts": "experts.router",
    "encoders_of": "experts.router",
    "MAIN_INPUTS": "experts.onnx_encoder",
    "NONE": "experts.configuration",
    "OnnxEncoder": "experts.onnx_encoder",
    "PointsConfig": "points.configuration",
    "PointsForConditionalGeneration": "points.network",
    "PointsProcessor": "points.processing",
    "ROUTE": "groups.linear",
    "RoutedLinear": "groups.linear",
    "SEPARATOR": "names",
    "TEXT": "groups.specs",
    "TYPE_IDS": "families",
    "VISION_MIX_TYPE": "families",
    "Value": "experts.onnx_graph",
    "add_expert_tokens": "experts.processing",
    "build_encoder": "towers.native_classes",
    "build_projector": "experts.projectors",
    "build_tower": "towers.build",
    "call_processor": "processing.native_calls",
    "cut_graph": "experts.onnx_graph",
    "MixedEncoder": "vision_mix.encoders",
    "SourceViews": "vision_mix.source_views",
    "VisionMixConfig": "vision_mix.configuration",
    "view_tokens": "vision_mix.configuration",
    "VisionMixModel": "vision_mix.network",
    "VisionMixProcessor": "vision_mix.processing",
    "largest_grid": "vision_mix.views",
    "copy_source_processor": "processing.sources",
    "load_own_processor": "processing.sources",
    "Family": "families",
    "encoder_class": "experts.encoder",
    "encoder_width": "experts.encoder",
    "expert_summary": "experts.processing",
    "family_of": "families",
    "refusal": "families",
    "hidden_states": "experts.encoder",
    "in_weights_dtype": "towers.input_dtype",
    "load_item_processor": "experts.processing",
    "load_source_processor": "processing.load",
    "make_route": "groups.weight_routing",
    "missing_layer": "experts.encoder",
    "native_config": "configuration.native",
    "native_inputs": "experts.processing",
    "processor_modalities": "processing.native_calls",
    "processor_placeholder": "processing.native_calls",
    "read_graph": "experts.onnx_graph",
    "route_language": "groups.linear",
    "routed_linears": "groups.linear",
    "sampling_rate": "processing.native_calls",
    "takes_flat_options": "processing.native_calls",
    "text_family_of": "families",
    "without_second_bos": "processing.native_calls",
    "generate_files": "bundle",
    "AUTO_MAP": "configuration.composed",
    "ComposedConfig": "configuration.composed",
    "composed_config": "configuration.composed",
    "stored_source": "configuration.composed",
    "DOMAIN_TOKENS": "experts.configuration",
    "SLOT_TOKEN": "experts.configuration",
    "expert_token": "experts.configuration",
    "initial_values": "experts.expert",
    "add_mask_token": "experts.hidden_tokens",
    "ComposedForConditionalGeneration": "network.composed",
    "ComposedModel": "network.composed",
    "add_prefixes": "prefixes.network",
    "prefix_fields": "prefixes.tokens",
    "add_groups": "groups.editing",
    "fold_text": "groups.editing",
    "group_parameters": "groups.editing",
    "GroupSpec": "groups.specs",
    "base_key": "groups.specs",
    "group_keys": "groups.specs",
    "group_specs": "groups.specs",
    "ComposedProcessor": "processing.composed",
    "add_placeholders": "processing.composed",
    "build_processor": "processing.composed",
    "structure_ids": "processing.composed",
    "write_processor": "processing.composed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Lazy, because torch and transformers take seconds to import.
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def register() -> None:
    """Makes transformers' Auto classes load composed checkpoints from here; may be called again."""
    importlib.import_module(f"{__name__}.registration").register()
