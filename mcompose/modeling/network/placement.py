"""Where media go in a batch of text: placeholder masks, safe embedding, and putting features in their places.

Letters: B text rows, L tokens, D width of the language model, N vectors of all items of one modality.

A placeholder id may lie beyond the embedding table (the composition invents no rows), so such ids are embedded as id
0 and their vectors replaced. Nothing here depends on the values in a batch except the count check, so it compiles.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils import torch_compilable_check

from ..families import TYPE_IDS
from ..towers.features import Features

__all__ = [
    "check_missing",
    "deepstack_inputs",
    "embed_text",
    "expand_features",
    "place",
    "placeholder_masks",
    "type_ids",
]


def placeholder_masks(
    ids: Mapping[str, int],
    *,
    input_ids: torch.Tensor | None,
    mm_token_type_ids: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Returns modality -> bool mask (B, L) of its placeholders.

    Args:
        ids: Modality -> placeholder id.
        input_ids: Token ids (B, L); decisive when given.
        mm_token_type_ids: Type per token (B, L), used when there are only embeddings.
    """
    if input_ids is not None:
        return {modality: input_ids == index for modality, index in ids.items()}
    if mm_token_type_ids is not None:
        return {modality: mm_token_type_ids == TYPE_IDS[modality] for modality in ids}
    return {}


def type_ids(ids: Mapping[str, int], input_ids: torch.Tensor) -> torch.Tensor:
    """Returns mm_token_type_ids (B, L): 0 text, 1 image, 2 video, 3 audio, 4 points."""
    types_BL = torch.zeros_like(input_ids)
    for modality, index in ids.items():
        types_BL = types_BL.masked_fill(input_ids == index, TYPE_IDS[modality])
    return types_BL


def embed_text(table: nn.Embedding, input_ids: torch.Tensor, own_ids: list[int]) -> torch.Tensor:
    """Embeds token ids; the composition's own ids that have no row are embedded as id 0.

    Args:
        table: The language model's embedding.
        input_ids: Token ids (B, L).
        own_ids: Ids that features will replace (placeholders and structural tokens).
    """
    beyond = [index for index in own_ids if index >= table.num_embeddings]
    for index in beyond:
        input_ids = input_ids.masked_fill(input_ids == index, 0)
    return table(input_ids)


def place(
    x_BLD: torch.Tensor,
    features: Mapping[str, Features],
    masks: Mapping[str, torch.Tensor],
    *,
    input_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Puts features where the placeholders are.

    Args:
        x_BLD: Embedded text.
        features: Modality -> features of all items in the batch, in reading order of the batch.
        masks: Modality -> where its placeholders are (B, L).
        input_ids: Token ids (B, L), for families with structural tokens.

    Returns:
        The embeddings (B, L, D) with features in place.

    Raises:
        ValueError: When features and placeholders do not match in number.
    """
    for modality, made in features.items():
        if modality not in masks:
            raise ValueError(f"{modality} inputs came without input_ids or mm_token_type_ids to say where they go.")
        mask_BL = masks[modality].to(x_BLD.device)
        count, total = mask_BL.sum(), made.x_ND.shape[0]
        torch_compilable_check(
            count == total,
            lambda m=modality, c=count, t=total: f"The batch has {int(c)} {m} placeholder tokens and {t} {m} features.",
        )
        x_ND = made.x_ND.to(x_BLD.device, x_BLD.dtype)
        x_BLD = x_BLD.masked_scatter(mask_BL[..., None].expand_as(x_BLD), x_ND)
        for index, vector_D in made.structure.items():
            if input_ids is not None:
                here = (input_ids == index).to(x_BLD.device)[..., None]
                x_BLD = torch.where(here, vector_D.to(x_BLD.device, x_BLD.dtype), x_BLD)
    return x_BLD


def check_missing(
    features: Mapping[str, Features], masks: Mapping[str, torch.Tensor], *, past_key_values: Cache | None
) -> None:
    """Refuses placeholders that no medium came for.

    Args:
        features: What came.
        masks: Modality -> where its placeholders are (B, L).
        past_key_values: Cache; what was generated after a prompt is not looked at.

    Raises:
        ValueError: Naming the modality and the number of its placeholders.
    """
    if torch.compiler.is_compiling() or (past_key_values is not None and past_key_values.get_seq_length() > 0):
        return
    for modality, mask_BL in masks.items():
        if modality not in features and mask_BL.any():
            raise ValueError(
                f"The batch has {int(mask_BL.sum())} {modality} placeholder tokens and no {modality} came."
            )


def deepstack_inputs(
    features: Mapping[str, Features],
    masks: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Returns the language model's deepstack arguments, empty when no feature goes to later layers."""
    deep = {modality: made.deepstack for modality, made in features.items() if made.deepstack}
    if not deep:
        return {}
    where_BL = torch.stack([masks[modality] for modality in deep]).any(dim=0)
    layers = []
    for index in range(max(len(made) for made in deep.values())):
        joint_ND = None
        for modality, made in deep.items():
            x_ND = made[index]
            if joint_ND is None:
                joint_ND = x_ND.new_zeros((int(where_BL.sum()), x_ND.shape[-1]))
            joint_ND[masks[modality][where_BL].to(x_ND.device)] = x_ND
        layers.append(joint_ND)
    return {"visual_pos_masks": where_BL, "deepstack_visual_embeds": layers}


def expand_features(features: Features, mask_BL: torch.Tensor, times: int) -> Features:
    """Repeats each text row's features, as beam search and several samples repeat the row itself.

    Args:
        features: Features of the batch as it was.
        mask_BL: Its placeholders.
        times: How often each row is repeated.
    """
    counts = mask_BL.sum(dim=-1).tolist()

    def repeat(x_ND: torch.Tensor) -> torch.Tensor:
        rows = torch.split(x_ND, counts)
        return torch.cat([row for row in rows for _ in range(times)])

    return Features(repeat(features.x_ND), [repeat(x) for x in features.deepstack], features.structure)
