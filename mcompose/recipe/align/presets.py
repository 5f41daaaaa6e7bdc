"""Named settings of stages that fill in what a recipe leaves out.

``chimera-stage1`` and ``chimera-stage2`` are the two stages of Peng et al. 2024, arXiv:2412.05983 (section 3.4, tables
15 and 16), for models of up to 4 billion parameters. A key that the recipe writes replaces the preset's::

    align:
      stages:
        1: {preset: chimera-stage1, data: [data/align.jsonl], batch_size: 32}
        2: {preset: chimera-stage2, data: [data/instruct.jsonl], batch_size: 16, gscm: 0.5}

Difference to the published code: the vectors around an expert's tokens (``separators``) are trained from the first
stage on; there they keep random values until the language model is trained. For 8B sources the paper halves the
learning rates (2e-5, 1e-5) and the first stage's batch (128); write these values in the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcompose.errors import nearest_name
from mcompose.recipe.field_errors import FieldError

__all__ = ["PRESETS", "fill_in"]

_CHIMERA: dict[str, Any] = {
    "epochs": 1.0,
    "schedule": "cosine",
    "weight_decay": 0.01,
    "gradient_checkpointing": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "chimera-stage1": {
        **_CHIMERA,
        "train": ["projectors", "router", "separators"],
        "lr": 4e-5,
        "batch_size": 256,
        "warmup": 100.0,
        "max_length": 4096,
        "tiles": {"limit": 1, "optional": True},
    },
    "chimera-stage2": {
        **_CHIMERA,
        "train": ["projectors", "router", "separators", "llm"],
        "lr": 2e-5,
        "batch_size": 128,
        "warmup": 0.03,
        "max_length": 8192,
        "gscm": {"ratio": 0.3},
        "tiles": {"limit": 6, "optional": True},
    },
}
"""Name to settings of a stage, as a recipe would write them."""


def fill_in(raw: Any) -> Any:
    """Fills in a stage's missing settings from its preset.

    Args:
        raw: The stage as the recipe writes it.

    Returns:
        The stage with all settings and without ``preset``, so that it does not change with a later version's presets.

    Raises:
        FieldError: The preset does not exist.
    """
    if not isinstance(raw, Mapping) or raw.get("preset") is None:
        return raw
    name = raw["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise FieldError(
            f"'{{path}}' is not a known preset: '{name}'.", at=("preset",), hint=nearest_name(str(name), PRESETS)
        )
    written = {key: value for key, value in raw.items() if key != "preset"}
    defaults = {key: value for key, value in PRESETS[name].items() if key not in written}
    if "steps" in written:
        defaults.pop("epochs", None)
    return {**defaults, **written}
