"""Learned vectors around media items, as a tokenizer and a processor know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..families import MODALITIES, TYPE_IDS
from .configuration import PREFIX_SIDES

__all__ = ["prefix_counts", "prefix_fields", "prefix_token", "prefix_token_types", "wrapped"]


def prefix_token(modality: str, side: str) -> str:
    """Returns the token of one side ("prefix" or "suffix") of a modality's items."""
    return f"<{modality}_{side}>"


def prefix_fields(
    tokenizer: Any, *, prefix_tokens: Mapping[str, int] | None = None, suffix_tokens: Mapping[str, int] | None = None
) -> dict[str, dict[str, int]]:
    """Gives a tokenizer the tokens that stand for the vectors, and returns the fields of ``ComposedConfig``.

    Args:
        tokenizer: The composition's tokenizer; changed in place.
        prefix_tokens: Modality -> vectors before each item.
        suffix_tokens: Modality -> vectors after each item.

    Returns:
        ``prefix_tokens``, ``suffix_tokens``, ``prefix_token_ids`` and ``suffix_token_ids``, for ``composed_config``.
    """
    fields: dict[str, dict[str, int]] = {}
    for side, asked in zip(PREFIX_SIDES, (prefix_tokens, suffix_tokens), strict=True):
        counts = {modality: (asked or {})[modality] for modality in MODALITIES if (asked or {}).get(modality)}
        tokens = {modality: prefix_token(modality, side) for modality in counts}
        missing = [token for token in tokens.values() if token not in tokenizer.get_vocab()]
        tokenizer.add_tokens(missing, special_tokens=True)
        fields[f"{side}_tokens"] = counts
        fields[f"{side}_token_ids"] = {m: tokenizer.convert_tokens_to_ids(token) for m, token in tokens.items()}
    return fields


def prefix_counts(
    prefix_tokens: Mapping[str, int] | None, suffix_tokens: Mapping[str, int] | None
) -> dict[str, dict[str, int]]:
    """Returns "prefix" and "suffix" -> modality -> number of vectors."""
    return {"prefix": dict(prefix_tokens or {}), "suffix": dict(suffix_tokens or {})}


def prefix_token_types(counts: Mapping[str, Mapping[str, int]], tokenizer: Any) -> dict[str, int]:
    """Returns token -> type id of its modality, for the tokens that stand for vectors.

    Raises:
        ValueError: The tokenizer does not have one.
    """
    types = {prefix_token(modality, side): TYPE_IDS[modality] for side in counts for modality in counts[side]}
    if missing := [token for token in types if token not in tokenizer.get_vocab()]:
        raise ValueError(f"The tokenizer has no {missing[0]!r}; prefix_fields() adds it.")
    return types


def wrapped(text: str, modality: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Returns what a placeholder becomes, with the tokens around it.

    Args:
        text: What it becomes without them.
        modality: Its modality.
        counts: "prefix" and "suffix" -> modality -> number of vectors.
    """
    before, after = (prefix_token(modality, side) * counts[side].get(modality, 0) for side in PREFIX_SIDES)
    return before + text + after
