"""Reads the language model's config, the tied head and the placeholder tokens from a config, without transformers.

A ``config.json`` leaves defaults out, and old files have other spellings. The defaults of every type are generated into
``families.json``; here they fill in what the file leaves out. Fields that transformers derives from others (the width
of a head, the kind of each layer) are not computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcompose.anatomy.tables import exceptions, generated
from mcompose.on_disk import COMPOSED_TYPE, POINTS_TYPE

__all__ = ["Settings", "config_for_meta", "inner_config", "read_settings", "signature", "without_noise"]

_NOISE = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
        "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
        "id2label", "label2id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
        "output_scores", "prefix", "problem_type", "pruned_heads", "remove_invalid_values",
        "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
        "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
        "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "dtype",
        "is_encoder_decoder", "add_cross_attention", "is_decoder", "tie_encoder_decoder",
        "quantization_config",
    }
)  # fmt: skip
"""Fields of every config that do not describe the language model."""

_ROPE_SPELLINGS = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_emb_base", "rope_local_base_freq")


@dataclass(frozen=True)
class Settings:
    """Settings of one checkpoint that are not part of its family.

    Args:
        text_config: Config of the language model, with its ``model_type``.
        tied: Whether the head is the embedding.
        placeholders: Modality to the id of its placeholder token.
    """

    text_config: Mapping[str, Any]
    tied: bool
    placeholders: Mapping[str, int]


def inner_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], str]:
    """Returns the config of the part of a wrapper (``qwen2_5_omni``) that generates text.

    Returns:
        The config to read, the prefixes of unused keys with their reasons, and the wrapper's prefix.
    """
    wrapper = exceptions()["wrappers"].get(config.get("model_type", ""))
    if wrapper is None:
        return dict(config), {}, ""
    inner = dict(config.get(wrapper["inner"]) or {})
    inner.setdefault("model_type", f"{config['model_type']}_thinker")
    return inner, dict(wrapper["unused"]), wrapper["prefix"]


def config_for_meta(config: Mapping[str, Any], text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config that transformers can build the language model from.

    Args:
        config: Parsed ``config.json``.
        text_config: Config of the language model, from the anatomy; that of a composed model stands for itself.
    """
    return dict(text_config) if config.get("model_type") in (COMPOSED_TYPE, POINTS_TYPE) else inner_config(config)[0]


def signature(config: Mapping[str, Any]) -> str:
    """Returns the name of a config's family in ``families.json``: its type and the types of exchangeable sub-models."""
    model_type = config.get("model_type", "")
    facts = generated()["types"].get(model_type)
    if facts is None:
        return ""
    kinds = [_kind(config.get(key), default) for key, default in facts.get("submodels", {}).items()]
    return f"{model_type}:{','.join(kinds)}" if kinds else model_type


def _kind(sub_config: Any, default: str) -> str:
    return (sub_config.get("model_type") or default) if isinstance(sub_config, Mapping) else default


def read_settings(config: Mapping[str, Any], *, text_type: str) -> Settings:
    """Reads a config whose type is in ``families.json``.

    Args:
        config: Parsed ``config.json`` of the part that generates text.
        text_type: Model type of the language model, from the family.
    """
    facts = generated()["types"][config["model_type"]]
    text = _text_config(config, facts=facts, text_type=text_type)
    return Settings(text, _tied(config, facts=facts, text=text), _placeholders(config, facts=facts))


def without_noise(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without the fields that do not describe the language model."""
    return {name: value for name, value in config.items() if name not in _NOISE and name != "model_type"}


def _text_config(config: Mapping[str, Any], *, facts: Mapping[str, Any], text_type: str) -> dict[str, Any]:
    key = facts["text_key"]
    inner = config.get(key) if key else None
    written: dict[str, Any] = {}
    if isinstance(inner, Mapping):
        written.update(inner)
    elif not key:
        written.update(config)
    elif facts.get("flat"):
        written.update({name: value for name, value in config.items() if name not in facts["sub_configs"]})
    written = without_noise(written)
    defaults = dict(generated()["text_defaults"].get(text_type, {}))
    if text_type == facts["text_type"]:
        defaults.update(facts.get("text_partial" if isinstance(inner, Mapping) else "text_absent", {}))
    if any(spelling in written for spelling in _ROPE_SPELLINGS):
        defaults.pop("rope_parameters", None)
    return {**defaults, **written, "model_type": text_type}


def _tied(config: Mapping[str, Any], *, facts: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    rule = facts["tied"]
    if rule["owner"] == "text":
        return bool(text.get("tie_word_embeddings", rule["default"]))
    value = config.get("tie_word_embeddings")
    tied = bool(rule["default"] if value is None else value)
    return tied or bool(rule.get("follows_text") and text.get("tie_word_embeddings"))


def _placeholders(config: Mapping[str, Any], *, facts: Mapping[str, Any]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for modality, places in facts.get("placeholders", {}).items():
        for place, default in places.items():
            value = _at(config, place)
            value = default if value is None and modality not in ids else value
            if isinstance(value, int):
                ids[modality] = value
    return ids


def _at(config: Mapping[str, Any], place: str) -> Any:
    value: Any = config
    for step in place.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
