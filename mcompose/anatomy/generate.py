"""Writes ``data/families.json``: the families of all model types of transformers that generate text.

Run ``python -m mcompose.anatomy.generate`` when the newest supported transformers changes; a test compares the file
with a fresh run. Each type is built on the meta device from its default config, and again with the language models and
encoders that are commonly combined with it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from mcompose.anatomy import meta
from mcompose.anatomy.family import Family
from mcompose.anatomy.tables import exceptions
from mcompose.errors import AnatomyError

__all__ = ["DATA_FILE", "main", "regenerate"]

DATA_FILE = Path(__file__).parent / "data" / "families.json"

_TEXT = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "ministral3")
_VISION = ("clip_vision_model", "siglip_vision_model", "pixtral")
_POOLS = {"text_config": _TEXT, "vision_config": _VISION}
_OPEN = (
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "video_llava",
    "vipllava",
    "internvl",
    "mistral3",
)


def main() -> None:
    """Writes ``families.json``."""
    DATA_FILE.write_text(render(regenerate()), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """Formats the data as JSON with one row per line, so that diffs are readable."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_rows(value)}" for name, value in data.items()) + "\n}\n"


def _rows(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
    if isinstance(value, dict):
        rows = (f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in value.items())
        return "{\n" + ",\n".join(rows) + "\n}"
    return json.dumps(value)


def regenerate(only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Computes the content of ``families.json``.

    Args:
        only: Model types; all when empty.

    Returns:
        The content of the data file.
    """
    logging.set_verbosity_error()
    families: dict[str, Family] = {}
    types: dict[str, Any] = {}
    defaults = {kind: _stable(CONFIG_MAPPING[kind]) for kind in (() if only else _TEXT)}
    for model_type in sorted(only or meta.language_classes()):
        description = _describe_default(model_type)
        if description is None:
            continue
        config, family = description
        text = config.get_text_config(decoder=True)
        stable = defaults.setdefault(text.model_type, _stable(type(text)))
        facts = _facts(config)
        types[model_type] = {**facts, **_own_defaults(config, facts["text_key"], stable)}
        families.update(_variants(config, family))
    renamings = list(dict.fromkeys(step for family in families.values() for step in family.renamings))
    return {
        "transformers": metadata.version("transformers"),
        "renamings": [vars(step) for step in renamings],
        "types": dict(sorted(types.items())),
        "text_defaults": dict(sorted(defaults.items())),
        "outside": {} if only else _outside(),
        "families": {name: family.to_json(renamings) for name, family in sorted(families.items())},
    }


def _describe_default(model_type: str) -> tuple[PreTrainedConfig, Family] | None:
    """Returns default config and family; None where the defaults do not build a complete model."""
    try:
        config = meta.config_of({"model_type": model_type})
        if getattr(config, "is_encoder_decoder", False):
            return None
        family = meta.describe(config)
    except AnatomyError:
        return None
    return None if family.refusal == meta.NO_ENCODER else (config, family)


def _outside() -> dict[str, str]:
    """Returns types that are not decoder-only text generators, each as ``encoder-decoder`` or ``other``."""
    classes = meta.language_classes()
    outside: dict[str, str] = {}
    for model_type in sorted(CONFIG_MAPPING):
        if model_type in exceptions()["wrappers"]:
            continue
        try:
            config = CONFIG_MAPPING[model_type]
            is_double = bool(config.is_encoder_decoder or meta.config_of({"model_type": model_type}).is_encoder_decoder)
        except AnatomyError:
            is_double = False
        if is_double:
            outside[model_type] = "encoder-decoder"
        elif model_type not in classes:
            outside[model_type] = "other"
    return outside


def _facts(config: PreTrainedConfig) -> dict[str, Any]:
    text = config.get_text_config(decoder=True)
    key = next((name for name in config.sub_configs if getattr(config, name, None) is text), "")
    facts: dict[str, Any] = {
        "text_key": key,
        "text_type": text.model_type,
        "sub_configs": sorted(config.sub_configs),
        "submodels": _submodels(config),
        "tied": _tied_rule(config, key),
        "placeholders": meta.placeholders_of(config),
    }
    if key and _is_flat(config):
        facts["flat"] = True
    return {name: value for name, value in facts.items() if value or name == "text_key"}


def _submodels(config: PreTrainedConfig) -> dict[str, str]:
    """Returns the exchangeable sub-models, whose class the config names, with their default types."""
    return {
        name: getattr(getattr(config, name, None), "model_type", "")
        for name, kind in sorted(config.sub_configs.items())
        if kind is AutoConfig
    }


def _tied_rule(config: PreTrainedConfig, key: str) -> dict[str, Any]:
    """Returns which config's field ties the head, its default, and whether the text config's field is used instead."""
    owner = meta.tied_owner(config)
    holder = config.get_text_config(decoder=True) if owner == "text" else config
    default = bool(getattr(holder, "tie_word_embeddings", False))
    rule: dict[str, Any] = {"owner": owner, "default": default}
    if owner == "text" or not key:
        return rule
    either = _probe(config, {"tie_word_embeddings": False, key: {"tie_word_embeddings": True}})
    alone = _probe(config, {key: {"tie_word_embeddings": False}})
    if either is not None and getattr(either, "tie_word_embeddings", False) and alone is not None:
        rule.update(follows_text=True, default=bool(alone.tie_word_embeddings))
    return rule


def _is_flat(config: PreTrainedConfig) -> bool:
    """Returns whether old files have the language model's fields at the top level."""
    probe = _probe(config, {"intermediate_size": 1234})
    return probe is not None and getattr(probe.get_text_config(decoder=True), "intermediate_size", 0) == 1234


def _probe(config: PreTrainedConfig, change: Mapping[str, Any]) -> PreTrainedConfig | None:
    try:
        return meta.config_of({"model_type": config.model_type, **change})
    except AnatomyError:
        return None


_ROOTS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")


def _stable(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Returns a text config's defaults, without fields derived from others (they change when another is doubled)."""
    default = kind()
    plain = meta.plain_text_config(default)
    plain = {name: value for name, value in plain.items() if not isinstance(vars(default).get(name), tuple)}
    for field in _ROOTS:
        if not isinstance(plain.get(field), int):
            continue
        try:
            doubled = meta.config_of({"model_type": kind.model_type, field: 2 * plain[field]}, kind=kind)
        except AnatomyError:
            continue
        other = meta.plain_text_config(doubled)
        plain = {name: value for name, value in plain.items() if name == field or other.get(name) == value}
    return plain


def _own_defaults(config: PreTrainedConfig, key: str, stable: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults that a type changes in its language model: without a text config, and with a partial one."""
    text = config.get_text_config(decoder=True)
    defaults = {"text_absent": _changed(text, stable)}
    probe = _probe(config, {key: {"model_type": text.model_type}}) if key else None
    if probe is not None:
        defaults["text_partial"] = _changed(probe.get_text_config(decoder=True), stable)
    return {name: fields for name, fields in defaults.items() if fields}


def _changed(text: PreTrainedConfig, stable: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that must override the defaults so that the class rebuilds this config."""
    own = meta.plain_text_config(text)
    fields = {name: own[name] for name, value in stable.items() if name in own and own[name] != value}
    again = meta.config_of({"model_type": text.model_type, **stable, **fields}, kind=type(text))
    rebuilt = meta.plain_text_config(again)
    late = {name: value for name, value in own.items() if rebuilt.get(name) != value and value is not None}
    return {**fields, **late}


def _variants(config: PreTrainedConfig, family: Family) -> Iterator[tuple[str, Family]]:
    """Yields the family with its signature, and its variants with other common sub-models."""
    submodels = _submodels(config)
    head = f"{config.model_type}:" if submodels else config.model_type
    yield head + ",".join(submodels.values()), family
    if config.model_type not in _OPEN:
        return
    pools = [tuple(dict.fromkeys((kind, *_POOLS.get(name, ())))) for name, kind in submodels.items()]
    for kinds in itertools.product(*pools):
        change = {name: {"model_type": kind} for name, kind in zip(submodels, kinds, strict=True)}
        probe = _probe(config, change)
        if probe is not None:
            try:
                yield head + ",".join(kinds), meta.describe(probe)
            except AnatomyError:
                continue


if __name__ == "__main__":
    main()
