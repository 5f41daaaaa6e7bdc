"""Checks from their anatomies whether checkpoints can be composed, before any weight is read.

Shapes and settings are compared here; whether the weights come from the same base is measured later, by ``merge``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcompose.anatomy.part import Anatomy
from mcompose.anatomy.tables import generated

__all__ = ["can_compose", "rope_of"]

_SHAPE = {
    "hidden_size": "hidden size",
    "num_hidden_layers": "number of layers",
    "num_attention_heads": "number of heads",
    "num_key_value_heads": "number of key-value heads",
    "head_dim": "width of a head",
    "intermediate_size": "width of the MLP",
    "norm_eps": "epsilon of the norms",
    "activation": "activation",
}

_TWINS = (
    frozenset({"llama", "mistral", "ministral3"}),
    frozenset({"qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"}),
    frozenset({"qwen3", "qwen3_vl_text"}),
    frozenset({"gemma3_text", "gemma3"}),
)
"""Types whose tensors have the same names, shapes and meaning; only positions or attention windows differ."""


def can_compose(anatomies: Mapping[str, Anatomy]) -> list[str]:
    """Returns the reasons why checkpoints cannot be composed as they are.

    Args:
        anatomies: Source name to anatomy; two or more.

    Returns:
        One sentence for each reason, which names the sources; empty when the checkpoints can be composed.
    """
    reasons = [
        f"'{name}' cannot be a source: {anatomy.refusal}." for name, anatomy in anatomies.items() if anatomy.refusal
    ]
    usable = {name: anatomy for name, anatomy in anatomies.items() if not anatomy.refusal}
    names = list(usable)
    for other in names[1:]:
        reasons += _language_reasons(names[0], usable[names[0]], other, usable[other])
    return reasons + _modality_reasons(usable)


def rope_of(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rotary settings in one spelling.

    Old files have ``rope_theta`` and ``rope_scaling``, new ones ``rope_parameters``. Sections of M-RoPE are left out:
    they set how positions are counted, not what the weights expect. Where full and sliding attention have different
    settings, ``rope_local_theta`` is the theta of the sliding layers.
    """
    default = generated()["text_defaults"].get(str(text_config.get("model_type", "")), {}).get("rope_parameters") or {}
    rope = dict(text_config.get("rope_parameters") or text_config.get("rope_scaling") or {})
    sliding: dict[str, Any] = {}
    if "sliding_attention" in {**default, **rope}:
        local = text_config.get("rope_local_base_freq") or rope.pop("sliding_attention", {}).get("rope_theta")
        sliding["rope_local_theta"] = local or default["sliding_attention"]["rope_theta"]
        rope, default = rope.pop("full_attention", rope), default.get("full_attention", default)
    theta = rope.get("rope_theta") or text_config.get("rope_theta") or default.get("rope_theta", 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    handled = ("rope_theta", "rope_type", "type", "mrope_section", "mrope_interleaved")
    rest = {field: value for field, value in rope.items() if field not in handled}
    return {"rope_theta": theta, "rope_type": "default" if kind == "mrope" else kind, **sliding, **rest}


def _language_reasons(first: str, a: Anatomy, second: str, b: Anatomy) -> list[str]:
    kind_a, kind_b = str(a.text_config.get("model_type", "")), str(b.text_config.get("model_type", ""))
    if kind_a != kind_b and not any({kind_a, kind_b} <= twins for twins in _TWINS):
        return [f"The language models of '{first}' ({kind_a}) and '{second}' ({kind_b}) belong to different families."]
    reasons = []
    settings_a, settings_b = _settings(a.text_config), _settings(b.text_config)
    for field, words in _SHAPE.items():
        if settings_a[field] != settings_b[field]:
            reasons.append(
                f"The language models of '{first}' and '{second}' differ in {words}: "
                f"{settings_a[field]} and {settings_b[field]}."
            )
    rope_a, rope_b = rope_of(a.text_config), rope_of(b.text_config)
    reasons += [
        f"The language models of '{first}' and '{second}' differ in {field}: "
        f"{rope_a.get(field)} and {rope_b.get(field)}."
        for field in dict.fromkeys([*rope_a, *rope_b])
        if rope_a.get(field) != rope_b.get(field)
    ]
    return reasons + _vocabulary_reasons(first, a, second, b)


def _vocabulary_reasons(first: str, a: Anatomy, second: str, b: Anatomy) -> list[str]:
    """Compares vocabulary sizes: added tokens change them by less than 2 %, another tokenizer by more."""
    sizes = [anatomy.text_config.get("vocab_size") for anatomy in (a, b)]
    sizes = [size for size in sizes if isinstance(size, int)]
    if len(sizes) < 2 or max(sizes) <= 1.02 * min(sizes):
        return []
    return [f"'{first}' and '{second}' have different vocabularies: {sizes[0]} and {sizes[1]} tokens."]


def _settings(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the weights depend on; fields that a config leaves out follow from the others."""
    heads = text_config.get("num_attention_heads")
    hidden = text_config.get("hidden_size")
    width = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
    fields = {field: text_config.get(field) for field in _SHAPE}
    fields["num_key_value_heads"] = fields["num_key_value_heads"] or heads
    fields["head_dim"] = fields["head_dim"] or width
    fields["norm_eps"] = text_config.get("rms_norm_eps", text_config.get("layer_norm_eps"))
    fields["activation"] = text_config.get("hidden_act", text_config.get("hidden_activation"))
    return fields


def _modality_reasons(anatomies: Mapping[str, Anatomy]) -> list[str]:
    owners: dict[str, list[str]] = {}
    for name, anatomy in anatomies.items():
        for modality in anatomy.modalities:
            owners.setdefault(modality, []).append(name)
    return [
        f"{_and(names)} {'both' if len(names) == 2 else 'all'} accept {modality}; "
        "choose one of them with `modalities` in the recipe."
        for modality, names in owners.items()
        if len(names) > 1
    ]


def _and(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]
