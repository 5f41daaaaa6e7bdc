"""Anatomy of mcompose's own model types: the composed checkpoint, and the points source.

Their keys are the same in files and in memory, so no renaming is needed: the language model is under
``model.language_model``, and the nested configs describe the towers. Decoupled groups are beside their linear layers,
but are separate parts: a language model is merged, a group is copied. Domain experts are under ``model.experts``, with
one encoder and one projector each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcompose.anatomy.cache import ask_transformers
from mcompose.anatomy.family import Family
from mcompose.anatomy.part import (
    ADAPTER,
    EMBEDDING,
    ENCODER,
    EXPERT,
    GROUP,
    HEAD,
    LANGUAGE,
    MASK,
    ORIGIN,
    PROJECTOR,
    ROUTER,
    SEPARATORS,
    Slot,
)
from mcompose.anatomy.settings import Settings, inner_config, read_settings, signature
from mcompose.anatomy.tables import family_of_text, known_family
from mcompose.errors import AnatomyError
from mcompose.modalities import MODALITIES
from mcompose.on_disk import COMPOSED_TYPE, POINTS_TYPE, VISION_MIX_TYPE
from mcompose.part_names import qualified

__all__ = ["OWN_TYPES", "describe_own", "group_part", "mark_groups"]

OWN_TYPES = (COMPOSED_TYPE, POINTS_TYPE)

_DECODER = "model.language_model"
_GROUP = re.compile(r"\.groups\.([a-z]+)\.(?:weight|bias|lora_[AB]\.weight)$")
_ADAPTER = re.compile(r"\.adapters\.([^.]+)\.(?:down|up|router|scale)$")
_ORIGIN = re.compile(r"\.base\.(?:weight|bias)$")


def describe_own(config: Mapping[str, Any]) -> tuple[Family, Settings]:
    """Returns family and settings of a checkpoint that mcompose or its lab wrote.

    Raises:
        AnatomyError: The type of the language model, or of a tower's original model, is not known.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping) or not text.get("model_type"):
        raise AnatomyError(f"The config of type '{config['model_type']}' does not have `text_config.model_type`.")
    parts, layers = _language(text)
    if config["model_type"] == POINTS_TYPE:
        parts.update({"model.points_tower": ENCODER, "model.multi_modal_projector": PROJECTOR})
        modalities: tuple[str, ...] = ("points",)
    else:
        served = [modality for source in config["sources"].values() for modality in source["modalities"]]
        modalities = tuple(modality for modality in MODALITIES if modality in served)
        for name, source in config["sources"].items():
            tower_parts, tower_layers = _tower(source["config"])
            head = f"model.towers.{name}."
            parts.update({head + path: part for path, part in tower_parts.items()})
            layers += tuple(head + path for path in tower_layers)
        parts.update({"model.prefix_tokens": PROJECTOR, "model.suffix_tokens": PROJECTOR})
        parts.update(_experts(config))
    family = Family(
        model_type=config["model_type"],
        architecture=(config.get("architectures") or [""])[0],
        base="model",
        decoder=_DECODER,
        text_type=text["model_type"],
        parts=parts,
        layers=layers,
        modalities=modalities,
    )
    return family, _settings(config, text)


def _experts(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the paths of experts, their projectors, routers, separators and the mask vector."""
    parts: dict[str, str] = {}
    for name in config.get("experts") or {}:
        parts |= {f"model.experts.{name}.encoder": EXPERT, f"model.experts.{name}.projector": PROJECTOR}
    parts |= {f"model.routers.{modality}": ROUTER for modality in config.get("routers") or {}}
    parts |= {"model.domain_tokens": SEPARATORS} if parts else {}
    return parts | ({"model.mask_token": MASK} if config.get("mask_token") else {})


def mark_groups(slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """Assigns decoupled groups, the weights that low-rank groups are added to, and adapters to separate parts.

    Args:
        slots: Key to slot of a composed checkpoint, where all these still belong to what they stand beside.
    """
    return {key: _marked(slot) for key, slot in slots.items()}


def _marked(slot: Slot) -> Slot:
    adapter = _ADAPTER.search(slot.name) if slot.part in (LANGUAGE, ENCODER) else None
    if adapter:
        return replace(slot, part=qualified(ADAPTER, adapter[1]))
    return replace(slot, part=group_part(slot.name) or LANGUAGE) if slot.part == LANGUAGE else slot


def group_part(name: str) -> str:
    """Returns the decoupled group that a tensor of a language model belongs to.

    Args:
        name: Name of the tensor, in files or in memory.

    Returns:
        ``group:<modality>``; ``origin`` for weights that low-rank groups are added to; empty for other tensors.
    """
    group = _GROUP.search(name)
    if group:
        return qualified(GROUP, group[1])
    return ORIGIN if _ORIGIN.search(name) else ""


def _settings(config: Mapping[str, Any], text: Mapping[str, Any]) -> Settings:
    known = read_settings(text, text_type=text["model_type"]) if signature(text) else None
    text_config = known.text_config if known else dict(text)
    tied = config.get("tie_word_embeddings")
    if tied is None:
        tied = known.tied if known else text.get("tie_word_embeddings", False)
    ids = {modality: config.get(f"{modality}_token_id") for modality in MODALITIES}
    placeholders = {modality: index for modality, index in ids.items() if isinstance(index, int)}
    return Settings(text_config, bool(tied), placeholders)


def _language(text: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    family = known_family(signature(text)) or family_of_text(text["model_type"])
    if family is None:
        answer = ask_transformers(text)
        if answer is None:
            raise AnatomyError(f"The language model's type '{text['model_type']}' is not known.")
        family = answer[0]
    head = family.decoder + "."
    parts = {
        f"{_DECODER}.{path.removeprefix(head)}": part
        for path, part in family.parts.items()
        if part in (LANGUAGE, EMBEDDING)
    }
    layers = tuple(f"{_DECODER}.{path.removeprefix(head)}" for path in family.layers if path.startswith(head))
    return {**parts, "lm_head": HEAD}, layers


def _tower(config: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns encoder and projector paths and layer lists of a source, relative to its base model."""
    if config["model_type"] == VISION_MIX_TYPE:
        return _vision_mix(config)
    inner, _, _ = inner_config(config)
    is_own = inner["model_type"] in OWN_TYPES
    family = describe_own(inner)[0] if is_own else known_family(signature(inner))
    if family is None:
        answer = ask_transformers(inner)
        if answer is None:
            raise AnatomyError(f"A tower came from a model of type '{inner['model_type']}', which is not known.")
        family = answer[0]
    head = f"{family.base}." if family.base else ""
    towers = {path: part for path, part in family.parts.items() if part in (ENCODER, PROJECTOR)}
    layers = tuple(path.removeprefix(head) for path in family.layers if family.owner(path) in towers)
    return {path.removeprefix(head): part for path, part in towers.items()}, layers


def _vision_mix(config: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the paths of mixed image encoders, and the layer lists of the towers of sources among them."""
    parts = {"projectors": PROJECTOR, "start": PROJECTOR, "end": PROJECTOR, "empty": PROJECTOR}
    layers: tuple[str, ...] = ()
    for name, entry in config["encoders"].items():
        head = f"encoders.{name}."
        if "source" not in entry:
            parts[f"{head}encoder"] = ENCODER
            continue
        inside, inner_layers = _tower(entry["source"]["config"])
        parts.update({f"{head}tower.{path}": part for path, part in inside.items()})
        layers += tuple(f"{head}tower.{path}" for path in inner_layers)
    return parts, layers
