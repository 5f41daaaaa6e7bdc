"""Tokens that the language model must not read: hidden by the mask, taken out, or replaced by a learned vector.

Letters: B text rows, L tokens, K tokens that are kept in the longest row, D width.

Zeros inside the attention mask hide tokens during training (generalist-specialist collaboration masking: some of the
general encoder's tokens, so that the expert's are used). With "mask" the sequence stays as long; with "drop" the
same tokens leave it before the first layer while positions keep their gaps, which gives the same logits for less work;
with "learned" their embedding is one learned vector and attention sees all. Paper: Peng et al. 2024, arXiv 2412.05983,
section 3.3 (GSCM by the attention mask); the other two are not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["HIDING", "Kept", "add_mask_token", "check_hiding", "kept_tokens", "learnable"]

HIDING = ("mask", "drop", "learned")
_WINDOWS = ("full_attention", "sliding_attention")


@dataclass
class Kept:
    """The tokens that stay.

    Args:
        keep_BL: Where they stand.
        index_BK: Their places in the row; 0 where the shorter rows are filled up.
        real_BK: Which of them are no filling.
    """

    keep_BL: torch.Tensor  # noqa: N815 - shape suffix
    index_BK: torch.Tensor  # noqa: N815 - shape suffix
    real_BK: torch.Tensor  # noqa: N815 - shape suffix

    @property
    def places_BK(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """Places in the row, -1 where it is filled up."""
        return self.index_BK.masked_fill(~self.real_BK, -1)

    def vectors(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Picks vectors: (B, L, D) to (B, K, D)."""
        return x_BLD.gather(1, self.index_BK[..., None].expand(-1, -1, x_BLD.shape[-1]))

    def values(self, x: torch.Tensor, *, fill: int | bool = 0) -> torch.Tensor:
        """Picks values: (..., B, L) to (..., B, K), with ``fill`` where rows are filled up."""
        index = self.index_BK.to(x.device).expand(*x.shape[:-1], -1)
        return x.gather(-1, index).masked_fill(~self.real_BK.to(x.device), fill)

    def deepstack(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Takes the same tokens out of features that enter later layers."""
        if not inputs:
            return inputs
        where_BL = inputs["visual_pos_masks"]
        rows_N = self.keep_BL.to(where_BL.device)[where_BL]
        layers = [x_ND[rows_N.to(x_ND.device)] for x_ND in inputs["deepstack_visual_embeds"]]
        return {"visual_pos_masks": self.values(where_BL, fill=False), "deepstack_visual_embeds": layers}


def kept_tokens(mask_BL: torch.Tensor, *, left: bool) -> Kept:
    """Returns the tokens that a mask keeps, as rows of one length.

    Args:
        mask_BL: Non-zero on what is kept.
        left: Whether shorter rows are filled up on the left.
    """
    keep_BL = mask_BL.bool()
    longest = int(keep_BL.sum(-1).max())
    # A stable sort moves what is kept to one end and leaves its order.
    order_BL = (keep_BL if left else ~keep_BL).long().argsort(dim=-1, stable=True)
    index_BK = order_BL[:, -longest:] if left else order_BL[:, :longest]
    real_BK = keep_BL.gather(1, index_BK)
    return Kept(keep_BL, index_BK.masked_fill(~real_BK, 0), real_BK)


@torch.no_grad()
def add_mask_token(model: Any) -> None:
    """Gives a composed model the learned vector of hidden tokens, in place: the mean of its embedding table.

    Args:
        model: A ``ComposedModel`` or ``ComposedForConditionalGeneration``; its config is changed too. One that has the
            vector keeps it.
    """
    core = model if hasattr(model, "language_model") else model.model
    if core.config.mask_token:
        return
    core.config.mask_token = True
    table = core.get_input_embeddings().weight
    core.mask_token = nn.Parameter(table.float().mean(0).to(table.dtype))


def check_hiding(
    how: str,
    *,
    attention_mask: Any,
    padding_mask: torch.Tensor | None,
    text_config: Any,
    needs_padding: bool,
    cached: bool,
) -> None:
    """Refuses a way of hiding that cannot be right.

    Args:
        how: "mask", "drop" or "learned".
        attention_mask: The mask that hides.
        padding_mask: (B, L) of real tokens, hidden ones included.
        text_config: The language model's configuration.
        needs_padding: Whether positions are counted over real tokens.
        cached: Whether there are earlier tokens.

    Raises:
        ValueError: Saying why.
    """
    if how not in HIDING:
        raise ValueError(f"hidden is {how!r}; known: {', '.join(HIDING)}.")
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        raise ValueError("Hiding tokens needs a 2-D attention_mask with zeros where they stand.")
    if padding_mask is None and (needs_padding or how == "learned"):
        raise ValueError(
            "Which zeros of the attention mask are padding and which are hidden tokens cannot be told; pass "
            "padding_mask (B, L)."
        )
    if how != "drop":
        return
    if cached:
        raise ValueError("Tokens can be dropped only while nothing is cached.")
    window = getattr(text_config, "sliding_window", None)
    kinds = set(getattr(text_config, "layer_types", None) or ()) - set(_WINDOWS)
    if kinds or (window is not None and _slides(text_config) and attention_mask.shape[1] > window):
        raise ValueError(
            f"The layers of {text_config.model_type} look at neighbours by their distance in the row, so dropping "
            'tokens is not the same as hiding them; use hidden="mask".'
        )


def learnable(
    labels: torch.Tensor,
    attention_mask: torch.Tensor,
    padding_mask: torch.Tensor | None,
    *,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns labels (B, L) of which none would be read off a token that is not there.

    Args:
        labels: -100 where nothing is learned. What follows padding is not learned either.
        attention_mask: Zero on hidden tokens and padding.
        padding_mask: Zero on padding only; None when the two cannot be told apart.
        kept: Places (B, K) of the tokens that stayed when hidden ones were dropped, -1 where rows are filled up; then
            the labels of these are returned.

    Raises:
        ValueError: A label comes right after a hidden token, from which it would be predicted.
    """
    gone_BL = (attention_mask == 0).to(labels.device).roll(1, dims=-1)
    gone_BL[:, 0] = False
    learnt_BL = (labels != -100) & gone_BL
    if padding_mask is not None:
        learnt_BL &= (padding_mask != 0).to(labels.device).roll(1, dims=-1)
        if count := int(learnt_BL.sum()):
            raise ValueError(f"{count} labels come right after a hidden token, from which they would be predicted.")
    labels = labels.masked_fill(gone_BL, -100)
    if kept is None:
        return labels
    kept = kept.to(labels.device)
    return labels.gather(1, kept.clamp(min=0)).masked_fill(kept < 0, -100)


def _slides(text_config: Any) -> bool:
    kinds = getattr(text_config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(text_config, "use_sliding_window", True))
