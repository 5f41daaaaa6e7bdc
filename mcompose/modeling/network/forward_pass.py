"""One forward pass of the composed network, as its extensions see it.

Letters: B text rows, L tokens, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache

from ..towers.features import Features

__all__ = ["ForwardPass", "Reading"]


@dataclass
class ForwardPass:
    """The arguments of a forward pass, and what has been made of them so far.

    Args:
        input_ids: Token ids (B, L), or None.
        attention_mask: As ``ComposedModel.forward`` takes it.
        position_ids: The same.
        past_key_values: Cache of earlier tokens.
        kwargs: All further arguments; what remains of them goes to the language model.
        masks: Modality -> bool mask (B, L) of its placeholders.
        items: Modality -> what is known of its items, where the encoder's own vector of each item is needed.
        features: Modality -> features of all its items.
        counted_mask: 2-D mask over which positions are counted.
        own: Name of an extension -> what it keeps during this pass.
    """

    input_ids: torch.Tensor | None
    attention_mask: Any
    position_ids: torch.Tensor | None
    past_key_values: Cache | None
    kwargs: dict[str, Any]
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    items: dict[str, Any] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    counted_mask: Any = None
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether earlier tokens are in the cache."""
        return self.past_key_values is not None and self.past_key_values.get_seq_length() > 0


@dataclass
class Reading:
    """What the language model is about to read.

    Args:
        x_BLD: Embeddings with everything in place.
        attention_mask: 2-D, ready-made, or None.
        position_ids: (B, L), (3 or 4, B, L) or None.
        types_BL: Token types, where they matter.
        token_type_ids: As the native class takes them.
        origin: Modality -> bool (B, L): the tokens that come from its media.
        deepstack: The language model's deepstack arguments.
    """

    x_BLD: torch.Tensor  # noqa: N815 - shape suffix
    attention_mask: Any
    position_ids: torch.Tensor | None
    types_BL: torch.Tensor | None  # noqa: N815 - shape suffix
    token_type_ids: torch.Tensor | None
    origin: dict[str, torch.Tensor]
    deepstack: dict[str, Any]
