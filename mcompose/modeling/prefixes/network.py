"""Learned vectors around each media item: a few before its features and a few after them.

Letters: B text rows, L tokens, D width of the language model, P vectors on one side of an item.

A donor with decoupled parameters may have learned them with its projector. In the text they are tokens of their own,
``<image_prefix>`` and ``<image_suffix>``, so that it is plain where an item begins and ends, however its family lays
it out and whatever stands beside it. The k-th of P such tokens takes the k-th vector; the tokens need no row in the
embedding table. They count as tokens of their modality for routing and in ``mm_token_type_ids``, and as text for
M-RoPE positions. Paper: Chen et al. 2024, arXiv 2402.12750; the vectors are in the paper's code only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .configuration import PREFIX_SIDES, check_prefixes

__all__ = ["add_prefixes", "prefix_parameters"]


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
    check_prefixes(core.config, **fields)
    table = core.get_input_embeddings().weight
    for key, values in fields.items():
        setattr(core.config, key, {**getattr(core.config, key), **values})
    for side, counts in zip(PREFIX_SIDES, (prefix_tokens, suffix_tokens), strict=True):
        for modality, count in counts.items():
            zeros = torch.zeros(count, table.shape[1], dtype=table.dtype, device=table.device)
            getattr(core, f"{side}_tokens")[modality] = nn.Parameter(zeros)
