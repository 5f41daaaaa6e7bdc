"""Writes ``data/families.json``: what transformers' meta models say about every type that answers in text.

Run ``python -m mcompose.anatomy.generate`` after the newest supported transformers changes; a test compares the file
with a fresh run. The idea: build each type on the meta device from its default config, and again with the language models
and encoders that are commonly put into it, and keep the answers as data.
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
    """Writes the file."""
    DATA_FILE.write_text(render(regenerate()), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """JSON with one family per line: small, and a change shows as the lines that changed."""
    lines = []
    for section, value in data.items():
        rows = value.items() if isinstance(value, dict) else None
        if rows is None:
            inner = value if not isinstance(value, list) else None
            text = json.dumps(value) if inner is not None else _rows(f"{json.dumps(row)}" for row in value)
            lines.append(f"{json.dumps(section)}: {text if inner is not None else '[' + text + ']'}")
        else:
            body = _rows(f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in rows)
            lines.append(f"{json.dumps(section)}: {{{body}}}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(rows: Iterator[str]) -> str:
    return "\n" + ",\n".join(rows) + "\n"


def regenerate(only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Asks transformers about all types, or about some.

    Args:
        only: Model types; all when empty.

    Returns:
        The content of the data file.
    """
    logging.set_verbosity_error()
    families: dict[str, Family] = {}
    types: dict[str, Any] = {}
    text_defaults: dict[str, Any] = {}
    for model_type in sorted(only or meta.language_classes()):
        try:
            config = _default(model_type)
            if getattr(config, "is_encoder_decoder", False):
                continue
            family = meta.describe(config)
        except AnatomyError:
            continue
        text = config.get_text_config(decoder=True)
        types[model_type] = _facts(config)
        text_defaults.setdefault(text.model_type, _stable(type(text)))
        types[model_type].update(_own_text_defaults(text, text_defaults[text.model_type]))
        for signature, variant in _variants(config, family):
            families[signature] = variant
    for text_type in (*_TEXT,):
        text_defaults.setdefault(text_type, _stable(CONFIG_MAPPING[text_type]))
    renamings = list(dict.fromkeys(step for family in families.values() for step in family.renamings))
    return {
        "transformers": metadata.version("transformers"),
        "renamings": [vars(step) for step in renamings],
        "types": dict(sorted(types.items())),
        "text_defaults": dict(sorted(text_defaults.items())),
        "outside": {} if only else _outside(),
        "families": {name: family.to_json(renamings) for name, family in sorted(families.items())},
    }


def _default(model_type: str) -> PreTrainedConfig:
    return meta.config_of({"model_type": model_type})


def _outside() -> dict[str, str]:
    """Types that transformers knows and that do not answer in text alone."""
    classes = meta.language_classes()
    found: dict[str, str] = {}
    for model_type in sorted(CONFIG_MAPPING):
        if model_type in exceptions()["wrappers"]:
            continue
        try:
            config = CONFIG_MAPPING[model_type]
            double = bool(config.is_encoder_decoder or meta.config_of({"model_type": model_type}).is_encoder_decoder)
        except AnatomyError:
            double = False
        if double:
            found[model_type] = "encoder-decoder"
        elif model_type not in classes:
            found[model_type] = "other"
    return found


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
    """Exchangeable sub-models: those whose class the config names itself."""
    return {
        name: getattr(getattr(config, name, None), "model_type", "")
        for name, kind in sorted(config.sub_configs.items())
        if kind is AutoConfig
    }


def _tied_rule(config: PreTrainedConfig, key: str) -> dict[str, Any]:
    owner = meta.tied_owner(config)
    default = bool(
        getattr(config if owner == "top" else config.get_text_config(decoder=True), "tie_word_embeddings", False)
    )
    rule: dict[str, Any] = {"owner": owner, "default": default}
    if owner == "top" and not hasattr(config, "tie_word_embeddings"):
        rule["owner"] = "never"
    elif (
        owner == "top"
        and key
        and _follows(config, {key: {"tie_word_embeddings": not default}}, "tie_word_embeddings", not default)
    ):
        rule["follows_text"] = True
    return rule


def _is_flat(config: PreTrainedConfig) -> bool:
    """Whether old files spell the language model's fields at the top level."""
    try:
        probe = meta.config_of({"model_type": config.model_type, "intermediate_size": 1234})
    except AnatomyError:
        return False
    return getattr(probe.get_text_config(decoder=True), "intermediate_size", 0) == 1234


def _follows(config: PreTrainedConfig, change: Mapping[str, Any], field: str, value: Any) -> bool:
    try:
        return getattr(meta.config_of({"model_type": config.model_type, **change}), field, None) == value
    except AnatomyError:
        return False


def _stable(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Defaults of a text config, less the fields that follow from others."""
    plain = meta.plain_text_config(kind())
    for field, value in (
        ("hidden_size", 2),
        ("num_attention_heads", 2),
        ("num_hidden_layers", 2),
        ("max_position_embeddings", 2),
    ):
        if not isinstance(plain.get(field), int):
            continue
        try:
            other = meta.plain_text_config(
                meta.config_of({"model_type": kind.model_type, field: plain[field] * value}, kind=kind)
            )
        except AnatomyError:
            continue
        plain = {name: kept for name, kept in plain.items() if name == field or other.get(name) == kept}
    return plain


def _own_text_defaults(text: PreTrainedConfig, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Where a type changes the defaults of its language model."""
    own = meta.plain_text_config(text)
    changed = {name: own[name] for name in defaults if name in own and own[name] != defaults[name]}
    return {"text_defaults": changed} if changed else {}


def _variants(config: PreTrainedConfig, family: Family) -> Iterator[tuple[str, Family]]:
    submodels = _submodels(config)
    if not submodels:
        yield config.model_type, family
        return
    yield _signature(config.model_type, submodels.values()), family
    if config.model_type not in _OPEN:
        return
    choices = [_choices(name, default) for name, default in submodels.items()]
    for kinds in itertools.product(*choices):
        signature = _signature(config.model_type, kinds)
        changes = {name: {"model_type": kind} for name, kind in zip(submodels, kinds, strict=True) if kind}
        try:
            yield signature, meta.describe(meta.config_of({"model_type": config.model_type, **changes}))
        except AnatomyError:
            continue


def _signature(model_type: str, kinds: Any) -> str:
    return f"{model_type}:{','.join(kinds)}"


def _choices(name: str, default: str) -> tuple[str, ...]:
    pool = {"text_config": _TEXT, "vision_config": _VISION}.get(name, ())
    return tuple(dict.fromkeys((default, *pool)))


if __name__ == "__main__":
    main()
