"""Tokens that a composition adds to the tokenizer of its language model, beside those of experts and prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..families import MODALITIES, family_of
from .native_calls import PLACEHOLDERS

__all__ = ["add_placeholders", "structure_ids"]


def add_placeholders(tokenizer: Any, modalities: Sequence[str]) -> dict[str, int]:
    """Gives a tokenizer the placeholders of some modalities as special tokens; those it has stay as they are.

    Args:
        tokenizer: The composition's tokenizer; changed in place.
        modalities: What the composition serves.

    Returns:
        Modality -> placeholder id, for ``composed_config``.
    """
    wanted = [PLACEHOLDERS[modality] for modality in MODALITIES if modality in modalities]
    missing = [token for token in wanted if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return {modality: tokenizer.convert_tokens_to_ids(PLACEHOLDERS[modality]) for modality in modalities}


def structure_ids(tokenizer: Any, config: Mapping[str, Any], *, source_tokenizer: Any) -> list[int] | None:
    """Gives a tokenizer the structural tokens of a source (Ovis2's image marks), for :func:`stored_source`.

    Args:
        tokenizer: The composition's tokenizer; changed in place.
        config: The source's configuration as a dictionary.
        source_tokenizer: The source's own tokenizer.

    Returns:
        The tokens' ids in the composition, in the configuration's order; None for families without such tokens.
    """
    field = family_of(config["model_type"]).structure
    if field is None:
        return None
    tokens = source_tokenizer.convert_ids_to_tokens(list(config[field]))
    tokenizer.add_tokens([token for token in tokens if token not in tokenizer.get_vocab()], special_tokens=True)
    return tokenizer.convert_tokens_to_ids(tokens)
