"""Can these checkpoints be composed? What their anatomies alone tell, before any weight is read.

Shapes and settings decide here; whether the weights truly come from one base is measured later, by ``merge``.
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
"""Types whose tensors have the same names, shapes and meaning; they differ in positions or attention windows only."""


def can_compose(anatomies: Mapping[str, Anatomy]) -> list[str]:
    """Reasons why checkpoints cannot be composed as they are.

    Args:
        anatomies: Source name to anatomy; two or more.

    Returns:
        One sentence per reason, naming the sources; empty when nothing stands in the way.
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
    """Rotary settings in one spelling; old files have ``rope_theta`` and ``rope_scaling``, new ``rope_parameters``.

    Sections of M-RoPE are left out: they say how positions count, not what the weights expect. Where layers of
    different attention have their own settings, ``rope_local_theta`` is that of the sliding ones.
    """
    default = generated()["text_defaults"].get(str(text_config.get("model_type", "")), {}).get("rope_parameters") or {}
    rope = dict(text_config.get("rope_parameters") or text_config.get("rope_scaling") or {})
    found: dict[str, Any] = {}
    if "sliding_attention" in {**default, **rope}:
        local = text_config.get("rope_local_base_freq") or rope.pop("sliding_attention", {}).get("rope_theta")
        found["rope_local_theta"] = local or default["sliding_attention"]["rope_theta"]
        rope, default = rope.pop("full_attention", rope), default.get("full_attention", default)
    theta = rope.get("rope_theta") or text_config.get("rope_theta") or default.get("rope_theta", 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    aside = ("rope_theta", "rope_type", "type", "mrope_section", "mrope_interleaved")
    rest = {field: value for field, value in rope.items() if field not in aside}
    return {"rope_theta": theta, "rope_type": "default" if kind == "mrope" else kind, **found, **rest}


def _language_reasons(first: str, a: Anatomy, second: str, b: Anatomy) -> list[str]:
    kind_a, kind_b = str(a.text_config.get("model_type", "")), str(b.text_config.get("model_type", ""))
    if kind_a != kind_b and not any({kind_a, kind_b} <= twins for twins in _TWINS):
        return [f"The language models of '{first}' ({kind_a}) and '{second}' ({kind_b}) are of different families."]
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
    """Added tokens make tables a little longer; a table of another tokenizer is another size altogether."""
    found = [anatomy.text_config.get("vocab_size") for anatomy in (a, b)]
    sizes = [size for size in found if isinstance(size, int)]
    if len(sizes) < 2 or max(sizes) <= 1.02 * min(sizes):
        return []
    return [f"'{first}' and '{second}' have different vocabularies: {sizes[0]} and {sizes[1]} tokens."]


def _settings(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the weights depend on; what a config leaves out follows from the others."""
    heads = text_config.get("num_attention_heads")
    hidden = text_config.get("hidden_size")
    width = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
    found = {field: text_config.get(field) for field in _SHAPE}
    found["num_key_value_heads"] = found["num_key_value_heads"] or heads
    found["head_dim"] = found["head_dim"] or width
    found["norm_eps"] = text_config.get("rms_norm_eps", text_config.get("layer_norm_eps"))
    found["activation"] = text_config.get("hidden_act", text_config.get("hidden_activation"))
    return found


def _modality_reasons(anatomies: Mapping[str, Anatomy]) -> list[str]:
    owners: dict[str, list[str]] = {}
    for name, anatomy in anatomies.items():
        for modality in anatomy.modalities:
            owners.setdefault(modality, []).append(name)
    return [
        f"{_and(names)} both take {modality}; say in the recipe which one serves it (`modalities`)."
        if len(names) == 2
        else f"{_and(names)} all take {modality}; say in the recipe which one serves it (`modalities`)."
        for modality, names in owners.items()
        if len(names) > 1
    ]


def _and(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]
