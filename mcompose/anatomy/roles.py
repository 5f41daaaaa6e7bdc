"""Fallback for types that transformers does not know: finds the parts by the names of the keys.

The embedding table shows where the language model is, its layers and last norm are next to it, and encoders and
connectors have few usual names. No code of the checkpoint is run. The result is a guess and comes with a warning; a key
without a role is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mcompose.anatomy.family import BUFFERS
from mcompose.anatomy.part import (
    EMBEDDING,
    ENCODER,
    HEAD,
    LANGUAGE,
    PROJECTOR,
    UNUSED,
    Anatomy,
    Slot,
)
from mcompose.anatomy.settings import without_noise
from mcompose.anatomy.tables import generated
from mcompose.errors import AnatomyError
from mcompose.modalities import MODALITIES

__all__ = ["read_by_roles"]

_EMBEDDING = re.compile(r"^(?P<decoder>.*?)\.?(?P<name>embed_tokens|tok_embeddings|word_embeddings|wte)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output_projection|embed_out)\.(?P<leaf>weight|bias)$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|resblocks|h)\.(\d+)\.")
_DECODER_CHILD = re.compile(r"^(?:layers|h|blocks|norm|final_layernorm|ln_f|final_norm|embed_positions|wpe)(?:\.|$)")
_CONNECTOR = re.compile(
    r"projector|projection|connector|aligner|adapter|resampler|perceiver|q_?former|newline|merger|bridge|"
    r"query_tokens|learnable_quer|mm_proj|_proj$|view_sep"
)
_MODALITY_WORDS = (
    ("video", re.compile(r"video")),
    ("audio", re.compile(r"audio|speech|whisper|beats|sound")),
    ("points", re.compile(r"point")),
    ("image", re.compile(r"vision|visual|image|img|vit|clip|pixel")),
)
_ENCODER = re.compile(
    r"vision|visual|image|img|audio|speech|whisper|beats|sound|video|point|encoder|backbone|tower|clip|vit|\beva\b"
)
_CONTAINERS = frozenset({"model", "base_model", "module", "transformer", "language_model", "llm", "llama_model"})


def read_by_roles(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Anatomy:
    """Assigns tensors to parts by the names of their keys.

    Args:
        config: Parsed ``config.json``.
        tensors: Key to shape.

    Raises:
        AnatomyError: The keys do not contain an embedding table, or some keys do not have a role.
    """
    decoder = _decoder(config, tensors)
    slots: dict[str, Slot] = {}
    orphans: list[str] = []
    for key in tensors:
        slot = _slot(key, decoder)
        if slot is None:
            orphans.append(key)
        else:
            slots[key] = slot
    if orphans:
        listed = ", ".join(f"'{key}'" for key in orphans[:10])
        more = f" and {len(orphans) - 10} more" if len(orphans) > 10 else ""
        raise AnatomyError(
            f"{len(orphans)} of {len(tensors)} tensors of the unknown type '{config['model_type']}' have no role: "
            f"{listed}{more}.",
            hint="Convert the checkpoint to a type that transformers knows.",
        )
    return _assemble(config, tensors, slots)


def _decoder(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    paths = [match.group("decoder") for match in map(_EMBEDDING.match, keys) if match]
    paths = [path for path in paths if not _role(path)]
    if not paths:
        raise AnatomyError(
            f"transformers does not know the type '{config['model_type']}', and no key names an embedding table.",
            hint="Convert the checkpoint to a type that transformers knows.",
        )
    return min(paths, key=len)


def _slot(key: str, decoder: str) -> Slot | None:
    if BUFFERS.search(key):
        return Slot(key, key, UNUSED, reason="computed by the model, not learned")
    head = _HEAD.search(key)
    if head and not _role(key[: head.start()]):
        return Slot(key, f"lm_head.{head.group('leaf')}", HEAD)
    inside = key.removeprefix(decoder + ".") if decoder else key
    if inside != key or not decoder:
        if _EMBEDDING.match(inside) and inside.count(".") == 1:
            return Slot(key, inside, EMBEDDING)
        if _DECODER_CHILD.match(inside):
            return Slot(key, inside, LANGUAGE, _layer(inside))
    part = _role(key)
    name = key.removeprefix("model.")
    return Slot(key, name, part, _layer(name) if part == ENCODER else None) if part else None


def _role(key: str) -> str:
    """Returns the part by the outermost word of a key that is not a mere container."""
    for word in key.lower().split("."):
        if word in _CONTAINERS:
            continue
        if _CONNECTOR.search(word):
            return PROJECTOR
        if _ENCODER.search(word):
            return ENCODER
        return ""
    return ""


def _layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def _assemble(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], slots: Mapping[str, Slot]) -> Anatomy:
    text, warnings = _text_config(config)
    parts = [slot.part for slot in slots.values()]
    layers = {slot.layer for slot in slots.values() if slot.part == LANGUAGE and slot.layer is not None}
    kind = config["model_type"]
    warnings = [
        f"transformers does not know the type '{kind}': the parts were guessed from the names of the keys, and no code "
        f"of the checkpoint was run. Check the numbers of tensors ({_counts(parts)}).",
        *warnings,
    ]
    return Anatomy(
        model_type=kind,
        architecture=str((config.get("architectures") or [""])[0]),
        known=False,
        slots=slots,
        text_config=text,
        num_layers=max(layers, default=-1) + 1,
        modalities=_modalities(slots.values()),
        placeholders=_placeholders(config),
        tied=HEAD not in parts and bool(text.get("tie_word_embeddings")),
        declared_tied=bool(text.get("tie_word_embeddings")),
        warnings=tuple(warnings),
    )


def _counts(parts: list[str]) -> str:
    names = (LANGUAGE, EMBEDDING, HEAD, ENCODER, PROJECTOR, UNUSED)
    return ", ".join(f"{parts.count(name)} {name}" for name in names if name in parts)


def _modalities(slots: Iterable[Slot]) -> tuple[str, ...]:
    found: list[str] = []
    for slot in slots:
        if slot.part != ENCODER:
            continue
        for modality, words in _MODALITY_WORDS:
            if words.search(slot.name.lower()):
                found.append(modality)
                break
    return tuple(modality for modality in MODALITIES if modality in found)


def _placeholders(config: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for modality in MODALITIES:
        for spelling in (f"{modality}_token_id", f"{modality}_token_index"):
            if isinstance(config.get(spelling), int) and config[spelling] >= 0:
                found.setdefault(modality, config[spelling])
    return found


def _text_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the language model's config (a sub-config, or the config with a guessed type), and warnings."""
    for spelling in ("text_config", "llm_config", "language_config"):
        inner = config.get(spelling)
        if isinstance(inner, Mapping) and inner.get("model_type"):
            return {**without_noise(inner), "model_type": inner["model_type"]}, []
    types = generated()["text_defaults"]
    wording = "_".join([str(config["model_type"]), *map(str, config.get("architectures") or [])]).lower()
    named = [kind for kind in types if len(kind) > 2 and kind.replace("_", "") in wording.replace("llava", "")]
    if named:
        kind = max(named, key=len)
        return {**without_noise(config), "model_type": kind}, [f"Its language model is read as '{kind}'."]
    return {**without_noise(config), "model_type": ""}, ["The type of its language model is not known."]
