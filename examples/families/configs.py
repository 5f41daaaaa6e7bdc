"""Tiny configs of any family: the defaults of its config class with small sizes, few layers and known token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

__all__ = ["TOKENS", "tiny_config"]

TOKENS = {"image": 120, "video": 121, "audio": 122}
"""Placeholder ids in all tiny models."""

_WIDTHS = (
    "hidden_size n_embd d_model dim hidden_dim embed_dim projection_dim out_hidden_size output_dim "
    "text_dim mm_embed_dim projector_hidden_size mm_hidden_size encoder_hidden_size cross_hidden_size "
    "text_hidden_size proj_hidden_size projector_input_dim projector_output_dim projection_hidden_size "
    "decoder_hidden_size adapter_hidden_size input_hidden_size downsample_hidden_size llm_hidden_size "
    "audio_embed_dim embedding_size embedding_dim"
)
_INNER = (
    "intermediate_size ffn_dim n_inner mlp_dim ffn_hidden_size projector_intermediate_size text_intermediate_size "
    "intermediate_dim encoder_ffn_dim adapter_intermediate_size ff_dim"
)
_SIZES = [
    (r"^(qk_rope_head_dim|v_head_dim|qk_nope_head_dim|linear_key_head_dim|linear_value_head_dim)$", 8),
    (r"^(head_dim|dim_head|attention_head_dim)$", 8),
    (r"(vocab_size|n_vocab)$", 128),
    (rf"({'|'.join(_WIDTHS.split())})$", 32),
    (r"(moe_intermediate_size|shared_expert_intermediate_size)$", 16),
    (rf"({'|'.join(_INNER.split())})$", 64),
    (r"^(num_hidden_layers|n_layers?|num_layers|depth|encoder_layers|decoder_layers|num_blocks)$", 2),
    (r"(num_attention_heads|n_heads?|num_heads|encoder_attention_heads|attention_heads)$", 4),
    (r"^(num_key_value_heads|n_kv_heads|num_kv_heads)$", 2),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts)$", 4),
    (r"^(num_experts_per_tok|moe_topk|moe_k|top_k_experts)$", 2),
    (r"^(max_position_embeddings|n_positions|n_ctx)$", 512),
    (r"^(q_lora_rank|kv_lora_rank)$", 16),
    (r"^(n_group|topk_group|first_k_dense_replace|bos_token_id)$", 1),
    (r"^(linear_num_key_heads|eos_token_id)$", 2),
    (r"^linear_num_value_heads$", 4),
    (r"^(state_size|mamba_d_state|ssm_state_size|num_mel_bins|n_window)$", 8),
    (r"^image_size$", 56),
    (r"^patch_size$", 14),
    (r"^num_position_embeddings$", 16),
    (r"^max_source_positions$", 40),
    (r"^pad_token_id$", 0),
]
_FACTORS = {
    "logits_scaling": 4.0, "logit_scale": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
    "lm_head_multiplier": 0.5, "output_multiplier": 0.5, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0,
}  # fmt: skip
"""Factors whose default of one, or none, would hide whether they are applied."""
_MEDIA_ID = re.compile(r"(image|video|audio|img|vision|im)_?(?:token|placeholder|patch)?_?(?:token)?_?(?:id|index)$")
_OTHER_ID = re.compile(r"token_(?:id|index)$")
_SKIPPED = ("transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id")
_LISTS: dict[str, list[int]] = {"deepstack_visual_indexes": [0, 1], "fullatt_block_indexes": [1]}
_LISTS |= {"global_attn_indexes": [1], "intermediate_size": [64, 64]}
_AXES = {"glm4v_moe": [1, 0, 1]}
"""M-RoPE sections of families whose default does not fit eight numbers a head."""


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Builds the config of a tiny model.

    Args:
        model_type: Any type that transformers knows.

    Raises:
        Exception: Whatever the class raises: some cannot be made small by a rule.
    """
    cls = CONFIG_MAPPING[model_type]
    defaults = cls().to_dict()
    wants_axes = model_type.startswith(("glm", "ernie", "paddle")) or "mrope_section" in str(defaults)
    axes = _AXES.get(model_type, [1, 1, 2]) if wants_axes else None
    return cls.from_dict({**_Shrink(axes).table(defaults), "model_type": model_type})


class _Shrink:
    """Makes a table of settings small; other token ids than the media's are counted through."""

    def __init__(self, axes: list[int] | None) -> None:
        self.axes, self.next_id = axes, 100

    def table(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings with small sizes."""
        small = {name: self._value(name, value) for name, value in settings.items() if name not in _SKIPPED}
        if "kv_lora_rank" in small:  # latent attention: every head has keys of its own, of two parts
            small["num_key_value_heads"] = 4
            small["qk_head_dim"] = small.get("qk_nope_head_dim", 8) + small.get("qk_rope_head_dim", 8)
        return small

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            if name.endswith("config") or "model_type" in value:
                return self.table(value)
            rotary = name in ("rope_parameters", "rope_scaling") and value and self.axes
            return {**value, "mrope_section": self.axes} if rotary else value
        if isinstance(value, bool):
            return value
        if name in _FACTORS:
            return _FACTORS[name]
        if (found := _MEDIA_ID.match(name)) and isinstance(value, int | None):
            return TOKENS.get(found[1], TOKENS["image"])
        if (
            name not in ("bos_token_id", "eos_token_id", "pad_token_id")
            and _OTHER_ID.search(name)
            and value is not None
        ):
            self.next_id += 1
            return 100 + self.next_id % 18
        if isinstance(value, list):
            return self._list(name, value)
        if isinstance(value, int) or (value is None and name == "pad_token_id"):
            return next((small for pattern, small in _SIZES if re.search(pattern, name)), value)
        return value

    def _list(self, name: str, value: list[Any]) -> Any:
        if name in ("layer_types", "mlp_layer_types", "layers_block_type") and value:
            return (list(dict.fromkeys(value)) * 2)[:2]
        if name in _LISTS:
            return _LISTS[name]
        if name in ("image_size", "patch_size") and len(value) == 2:
            return [56, 56] if name == "image_size" else [14, 14]
        return 2 if name == "eos_token_id" else value
