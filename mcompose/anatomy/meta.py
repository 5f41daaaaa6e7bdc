"""Reads families from transformers: the only module here (besides ``generate``) that imports torch or transformers.

A model built on the meta device from its config (no weights, no memory) shows where decoder, embeddings, head and
encoders are, and transformers' conversion list shows how files spell them. Both become a ``Family``, which is plain
data. The calls are partly internal to transformers; they work on 5.19 to 5.23.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightTransform
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from mcompose.anatomy.family import Family, Renaming
from mcompose.anatomy.part import EMBEDDING, ENCODER, HEAD, LANGUAGE, PROJECTOR
from mcompose.anatomy.settings import Settings, without_noise
from mcompose.anatomy.tables import exceptions
from mcompose.errors import AnatomyError, McomposeError, first_line
from mcompose.modalities import MODALITIES

__all__ = [
    "NO_ENCODER",
    "build_on_meta",
    "config_of",
    "decoder_of",
    "describe",
    "is_known",
    "language_classes",
    "placeholders_of",
    "plain_text_config",
    "renamings_of",
    "settings_of",
    "tied_owner",
]


NO_ENCODER = "it has no encoder that could be moved to another model"


def is_known(model_type: str) -> bool:
    """Returns whether the installed transformers has this model type."""
    return model_type in CONFIG_MAPPING


def language_classes() -> dict[str, str]:
    """Returns model type to the class that generates text, for all types that transformers lists."""
    names: dict[str, Any] = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    names.update(exceptions()["architectures"])
    return {kind: name if isinstance(name, str) else name[0] for kind, name in names.items()}


def config_of(config: Mapping[str, Any], *, kind: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """Builds the config object of a ``config.json``; transformers fills in defaults.

    Args:
        config: Parsed file.
        kind: Config class, for classes that are not registered under their type.

    Raises:
        AnatomyError: transformers refuses the config.
    """
    with _transformers_errors(config["model_type"]):
        return (kind or CONFIG_MAPPING[config["model_type"]]).from_dict(dict(config))


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the model on the meta device, with all modules and names but without weights.

    Raises:
        AnatomyError: transformers does not have a class that generates text for this type, or cannot build it.
    """
    name = language_classes().get(config.model_type, "")
    cls = getattr(transformers, name, None)
    if cls is None:
        raise AnatomyError(f"transformers does not have a model of type '{config.model_type}' that generates text.")
    with _transformers_errors(config.model_type), torch.device("meta"):
        return cls._from_config(config)


@contextmanager
def _transformers_errors(model_type: str) -> Iterator[None]:
    """Turns errors of transformers about a config into one sentence."""
    try:
        yield
    except McomposeError:
        raise
    except Exception as error:  # a config can break any line of any model's code
        raise AnatomyError(f"transformers cannot build '{model_type}' from its config: {first_line(error)}.") from error


def describe(config: PreTrainedConfig) -> Family:
    """Describes the family of all checkpoints that have this config's types.

    Raises:
        AnatomyError: The model cannot be built, or renames keys by other means than a list of patterns.
    """
    model = build_on_meta(config)
    with _transformers_errors(config.model_type):
        family = _describe(model, config)
    return replace(family, refusal=_refusal(family))


def _describe(model: PreTrainedModel, config: PreTrainedConfig) -> Family:
    paths = {id(module): path for path, module in model.named_modules()}
    decoder = decoder_of(model)
    parts = _parts(model, decoder=decoder, paths=paths)
    parts.update(exceptions()["parts"].get(config.model_type, {}))
    return Family(
        model_type=config.model_type,
        architecture=type(model).__name__,
        base=model.base_model_prefix,
        decoder=paths[id(decoder)],
        text_type=config.get_text_config(decoder=True).model_type,
        renamings=tuple(renamings_of(model)),
        parts=dict(sorted(parts.items())),
        layers=tuple(_layer_lists(model)),
        modalities=_modalities(model, config),
        ignored=tuple(_ignored(model)),
    )


_OF_LAYERS = re.compile(r"layers\\\.(?:\d|\\d)|layers\.\d")
"""Patterns with a layer's number are true for one depth; layers behind the last one are known by their number."""


def _ignored(model: PreTrainedModel) -> Iterator[str]:
    """Yields the patterns of keys that the class leaves unread, but those of layers or of the model itself."""
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    for pattern in sorted(model._keys_to_ignore_on_load_unexpected or ()):  # transformers has no public name for it
        if not _OF_LAYERS.search(pattern) and not any(re.search(pattern, name) for name in names):
            yield pattern


def renamings_of(model: PreTrainedModel) -> Iterator[Renaming]:
    """Yields the conversion list of a model as data, without conversions that change tensors.

    Raises:
        AnatomyError: A step renames keys by its own code.
    """
    for step in get_model_conversion_mapping(model):
        if isinstance(step, WeightConverter):
            continue
        if type(step).rename_source_key is not WeightTransform.rename_source_key:
            kind, step_type = model.config.model_type, type(step).__name__
            raise AnatomyError(f"'{kind}' renames keys by code ({step_type}), which is not supported.")
        yield Renaming(
            find=step.compiled_sources.pattern,
            replace=step.target_patterns[0],
            scope=step.scope_prefix,
            base=step.base_model_prefix or "",
        )


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Returns the stack of layers, also where the class calls a whole language model with its head the decoder.

    Args:
        model: Model of a family that generates text.
    """
    decoder = model.get_decoder()
    head = model.get_output_embeddings()
    while head is not None and any(module is head for module in decoder.modules()):
        table = model.get_input_embeddings()
        decoder = next(child for child in decoder.children() if any(module is table for module in child.modules()))
    return decoder


def _parts(model: PreTrainedModel, *, decoder: nn.Module, paths: Mapping[int, str]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for path, thing in _children(decoder, paths[id(decoder)]):
        parts[path] = LANGUAGE if _holds_weights(thing) else ""
    inside = {id(module) for module in decoder.modules()}
    around = {id(module) for module in model.modules() if any(child is decoder for child in module.modules())}
    parts.update(_outside(model, "", inside=inside, around=around - inside))
    parts[paths[id(model.get_input_embeddings())]] = EMBEDDING
    head = model.get_output_embeddings()
    if head is not None:
        parts[paths[id(head)]] = HEAD
    return {path: part for path, part in parts.items() if part}


def _outside(module: nn.Module, path: str, *, inside: set[int], around: set[int]) -> dict[str, str]:
    """Returns the parts outside the decoder: the outermost models are encoders, all other weights are projector."""
    parts: dict[str, str] = {}
    for child_path, child in _children(module, path):
        if id(child) in inside or not _holds_weights(child):
            continue
        if id(child) in around and isinstance(child, nn.Module):
            parts.update(_outside(child, child_path, inside=inside, around=around))
        elif isinstance(child, PreTrainedModel):
            parts[child_path] = ENCODER
        else:
            parts[child_path] = PROJECTOR
    return parts


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module | torch.Tensor]]:
    head = f"{path}." if path else ""
    for name, child in module.named_children():
        yield head + name, child
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield head + name, tensor


def _holds_weights(thing: nn.Module | torch.Tensor) -> bool:
    return isinstance(thing, torch.Tensor) or bool(thing.state_dict())


def _layer_lists(model: PreTrainedModel) -> Iterator[str]:
    """Yields the paths of the outermost lists of layers, recognised by their class or their usual names."""
    outermost: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(outer + ".") for outer in outermost) or not isinstance(module, nn.ModuleList):
            continue
        is_usual = path.rpartition(".")[2] in {"layers", "layer", "blocks", "h"}
        if is_usual or (len(module) and all(isinstance(child, GradientCheckpointingLayer) for child in module)):
            outermost.append(path)
            yield path


def _modalities(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[str, ...]:
    named = model.input_modalities
    named = (named,) if isinstance(named, str) else tuple(named or ())
    named = exceptions()["modalities"].get(config.model_type, named)
    if not config.sub_configs:  # the text-only class of a multimodal family does not have an encoder
        return ()
    return tuple(modality for modality in MODALITIES if modality in named)


def _refusal(family: Family) -> str:
    written = exceptions()["refusals"].get(family.model_type, "")
    if written:
        return written
    held = set(family.parts.values())
    if not {LANGUAGE, EMBEDDING} <= held:
        return "its language model cannot be told from the rest"
    if family.modalities and ENCODER not in held:
        return NO_ENCODER
    return ""


def settings_of(config: PreTrainedConfig) -> Settings:
    """Reads the language model's config, the tied head and the placeholders from a config object.

    Raises:
        AnatomyError: The model cannot be built.
    """
    text = config.get_text_config(decoder=True)
    plain = {**plain_text_config(text), "model_type": text.model_type}
    owner = text if tied_owner(config) == "text" else config
    tied = bool(getattr(owner, "tie_word_embeddings", False))
    ids = {modality: next(iter(values.values())) for modality, values in placeholders_of(config).items()}
    return Settings(plain, tied, {modality: index for modality, index in ids.items() if index is not None})


def plain_text_config(text: PreTrainedConfig) -> dict[str, Any]:
    """Returns the fields of a config with their defaults, as plain JSON values, without irrelevant ones."""
    return without_noise(json.loads(text.to_json_string(use_diff=False)))


def tied_owner(config: PreTrainedConfig) -> str:
    """Returns whose ``tie_word_embeddings`` is used: ``top`` if the class has the head, ``text`` if the decoder has."""
    model = build_on_meta(config)
    paths = {id(module): path for path, module in model.named_modules()}
    head = model.get_output_embeddings()
    return "text" if head is not None and "." in paths[id(head)] and config.sub_configs else "top"


def placeholders_of(config: PreTrainedConfig) -> dict[str, dict[str, int | None]]:
    """Returns modality to the fields that may hold its placeholder id, with their values, in order of precedence."""
    fields: dict[str, dict[str, int | None]] = {}
    named = exceptions()["placeholders"].get(config.model_type, {})
    for modality in MODALITIES:
        places = [named[modality]] if modality in named else []
        places += [f"{modality}_token_{ending}" for ending in ("index", "id")]
        values = {place: _value(config, place) for place in places if _has(config, place)}
        if values:
            fields[modality] = values
    return fields


def _has(config: PreTrainedConfig, place: str) -> bool:
    owner, _, field = place.rpartition(".")
    return hasattr(getattr(config, owner) if owner else config, field)


def _value(config: PreTrainedConfig, place: str) -> int | None:
    owner, _, field = place.rpartition(".")
    return getattr(getattr(config, owner) if owner else config, field)
