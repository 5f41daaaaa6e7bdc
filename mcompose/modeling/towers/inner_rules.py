"""Rules of placement and precision that native classes state, kept by a model that holds them deep inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["gather_rules"]

_GATHERED = (
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_no_split_modules",
    "_skip_keys_device_placement",
)


def gather_rules(model: Any, inner_models: Iterable[Any]) -> None:
    """Gives a model the rules of models inside; ``post_init`` looks at direct children only.

    Args:
        model: The outer model.
        inner_models: The native models, in order.
    """
    inner = list(inner_models)
    for attribute in _GATHERED:
        found = list(getattr(model, attribute, None) or [])
        for one in inner:
            found += sorted(getattr(one, attribute, None) or [])
        setattr(model, attribute, list(dict.fromkeys(found)))
