"""Learned vectors around each media item: a few before its features and a few after them.

Letters: B text rows, L tokens, D width of the language model, P vectors on one side of an item.

A donor with decoupled parameters may have learnt them with its projector. In the text they are tokens of their own,
``<image_prefix>`` and ``<image_suffix>``, so that it is plain where an item begins and ends, however its family lays
it out and whatever stands beside it. The k-th of P such tokens takes the k-th vector; the tokens need no row in the
embedding table. They count as tokens of their modality for routing and in ``mm_token_type_ids``, and as text for
M-RoPE positions. Paper: Chen et al. 2024, arXiv 2402.12750; the vectors are in the paper's code only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .families import MODALITIES, TYPE_IDS

__all__ = [
    "add_prefixes",
    "place_prefixes",
    "prefix_counts",
    "prefix_fields",
    "prefix_ids",
    "prefix_masks",
    "prefix_parameters",
    "prefix_token",
    "prefix_token_types",
    "wrapped",
]

_SIDES = ("prefix", "suffix")


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
    for side, asked in zip(_SIDES, (prefix_tokens, suffix_tokens), strict=True):
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
    before, after = (prefix_token(modality, side) * counts[side].get(modality, 0) for side in _SIDES)
    return before + text + after


def prefix_parameters(config: Any, side: str) -> nn.ParameterDict:
    """Returns modality -> vectors (P, D) of one side, zero."""
    width = config.text_config.hidden_size
    counts = getattr(config, f"{side}_tokens")
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(count, width)) for name, count in counts.items()})


@torch.no_grad()
def add_prefixes(
    model: Any,
    *,
    prefix_tokens: Mapping[str, int],
    suffix_tokens: Mapping[str, int],
    prefix_token_ids: Mapping[str, int],
    suffix_token_ids: Mapping[str, int],
) -> None:
    """Gives a composed model zero vectors around each item of some modalities, in place.

    Its processor needs the same counts. Call it with what :func:`prefix_fields` returned.

    Args:
        model: A ``ComposedModel`` or ``ComposedForConditionalGeneration``; its config is changed too.
        prefix_tokens: Modality -> vectors before each item.
        suffix_tokens: Modality -> vectors after each item.
        prefix_token_ids: Modality -> id of its prefix token.
        suffix_token_ids: Modality -> id of its suffix token.
    """
    core = model if hasattr(model, "language_model") else model.model
    fields = {
        "prefix_tokens": prefix_tokens, "suffix_tokens": suffix_tokens,
        "prefix_token_ids": prefix_token_ids, "suffix_token_ids": suffix_token_ids,
    }  # fmt: skip
    core.config.check_prefixes(**fields)
    table = core.get_input_embeddings().weight
    for key, values in fields.items():
        setattr(core.config, key, {**getattr(core.config, key), **values})
    for side, counts in zip(_SIDES, (prefix_tokens, suffix_tokens), strict=True):
        for modality, count in counts.items():
            zeros = torch.zeros(count, table.shape[1], dtype=table.dtype, device=table.device)
            getattr(core, f"{side}_tokens")[modality] = nn.Parameter(zeros)


def prefix_ids(config: Any) -> Iterator[tuple[str, str, int]]:
    """Yields modality, side and token id of all vectors that a configuration names."""
    for side in _SIDES:
        for modality, index in getattr(config, f"{side}_token_ids").items():
            yield modality, side, index


def prefix_masks(
    config: Any, masks: dict[str, torch.Tensor], input_ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Returns modality -> bool mask (B, L) of its features and of the vectors around them."""
    if input_ids is None:
        return masks
    whole = dict(masks)
    for modality, _, index in prefix_ids(config):
        if modality in whole:
            whole[modality] = whole[modality] | (input_ids == index)
    return whole


def place_prefixes(
    x_BLD: torch.Tensor, input_ids: torch.Tensor | None, model: Any, *, present: Mapping[str, Any]
) -> torch.Tensor:
    """Puts the vectors where their tokens are.

    Args:
        x_BLD: Embedded text.
        input_ids: Token ids (B, L).
        model: The ``ComposedModel`` with ``prefix_tokens`` and ``suffix_tokens``.
        present: The modalities whose features are in this batch.

    Raises:
        ValueError: Media of a modality with such vectors came without ``input_ids``.
    """
    for modality, side, index in prefix_ids(model.config):
        if modality not in present:
            continue
        if input_ids is None:
            raise ValueError(
                f"{modality} items have learned vectors around them, so their places cannot be told from "
                "mm_token_type_ids alone; pass input_ids."
            )
        vectors_PD = getattr(model, f"{side}_tokens")[modality]
        here_BL = (input_ids == index).to(x_BLD.device)
        turn_BL = (here_BL.long().cumsum(-1) - 1).clamp(min=0) % len(vectors_PD)
        vectors_BLD = vectors_PD.to(x_BLD.device, x_BLD.dtype)[turn_BL]
        x_BLD = torch.where(here_BL[..., None], vectors_BLD, x_BLD)
    return x_BLD
