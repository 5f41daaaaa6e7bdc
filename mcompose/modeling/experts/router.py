"""Which expert an item goes to: a linear layer on what the general encoder saw of the item.

Letters: I items, C classes ("none" and the experts), R rows that the encoder gave (one per tile or item, or one per
patch), S vectors of one row, W width of the encoder.

The feature is taken from the encoder's run that makes the item's own tokens: a hook reads its last hidden state, so
there is no second pass. Of each tile, the class token or the mean over its vectors is taken; of an item with several
tiles, the first, the last (InternVL's thumbnail) or their mean. Encoders that give all patches of a batch in one line
(Qwen2-VL, Pixtral) are averaged item by item.

Paper: Peng et al. 2024, arXiv 2412.05983, sections 3.1 and 3.2 (router and its loss).
Differs: the paper's code encodes the thumbnail a second time, and lets the loss reach the encoder when that is trained;
here the feature is detached, so the router is always a linear probe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

__all__ = ["ItemCounts", "chosen_experts", "encoders_of", "item_runs", "pooled_items", "router_loss", "watched_encoder"]


def encoders_of(tower: nn.Module) -> list[PreTrainedModel]:
    """Returns the outermost models of their own inside a tower; of a tower within a mix, its own encoders.

    Args:
        tower: A source's base model without its language model, or a mix of encoders.
    """
    found: list[PreTrainedModel] = []
    for child in tower.children():
        if isinstance(child, PreTrainedModel) and "language_class" not in child.__dict__:
            found.append(child)
        else:
            found += encoders_of(child)
    return found


@contextmanager
def watched_encoder(tower: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the last hidden state of the encoder that a tower runs inside this context.

    Args:
        tower: A source's base model without its language model. Of its parts that are models of their own, the one
            that runs first is the encoder.

    Yields:
        A list that holds (R, S, W), or (R, W), afterwards; empty when no such part ran.
    """
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        if not seen:
            seen.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handles = [module.register_forward_hook(keep) for module in encoders_of(tower)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class ItemCounts:
    """What is known of the items of one modality in a batch.

    Args:
        tokens: Placeholder tokens of each item; None when they cannot be told.
        items: Number of items, when it is known without them.
    """

    tokens: list[int] | None = None
    items: int | None = None

    @property
    def count(self) -> int | None:
        """Number of items, when it is known."""
        return self.items if self.tokens is None else len(self.tokens)


def pooled_items(
    hidden: torch.Tensor,
    *,
    config: Any,
    inputs: Mapping[str, Any],
    items: ItemCounts,
    total: int,
    router: Mapping[str, Any],
) -> torch.Tensor:
    """Returns one vector (I, W) per item.

    Args:
        hidden: What the encoder gave for all items of a batch, in order.
        config: The source's configuration.
        inputs: Its inputs, by native name.
        items: What is known of the items.
        total: Placeholder tokens of all items.
        router: The modality's entry in ``ComposedConfig.routers``.

    Raises:
        ValueError: The encoder's rows cannot be told apart by item.
    """
    hidden = _token_rows(hidden.detach(), int(router["width"]))
    weights = _grid_sizes(inputs) if items.tokens is None else items.tokens
    count = items.count if weights is None else len(weights)
    if hidden.dim() == 3 and hidden.shape[0] == 1 and count not in (None, 1):
        hidden = hidden[0]
    if hidden.dim() == 2:
        if router["feature"] == "class":
            raise ValueError(f"The encoder of {config.model_type} gives no class token; let the router read the mean.")
        return torch.stack([part.mean(0) for part in hidden.split(_flat_shares(len(hidden), weights))])
    tiles_RW = hidden[:, 0] if router["feature"] == "class" else hidden.mean(1)
    shares = _native_tiles(config, inputs) or _tile_shares(len(tiles_RW), tokens=items.tokens, total=total, count=count)
    pick = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0)}[router.get("tile", "mean")]
    return torch.stack([pick(part) for part in tiles_RW.split(shares)])


def item_runs(mask_BL: torch.Tensor) -> list[int]:
    """Returns the lengths of all unbroken runs of placeholders, row by row."""
    edge_BL = nn.functional.pad(mask_BL.long(), (1, 1)).diff(dim=-1)
    return ((edge_BL == -1).nonzero()[:, 1] - (edge_BL == 1).nonzero()[:, 1]).tolist()


def chosen_experts(logits_IC: torch.Tensor, router: Mapping[str, Any]) -> list[list[str]]:
    """Returns for each item the experts to use, most probable first; an empty list for none.

    Args:
        logits_IC: What the router says.
        router: The modality's entry in ``ComposedConfig.routers``: ``argmax`` takes the most probable class;
            ``threshold`` takes the most probable expert when its probability is at least ``threshold``, whatever that
            of "none" is; ``top_k`` takes the experts among the ``k`` most probable classes that are more probable than
            "none".
    """
    rule = router.get("rule", {"kind": "argmax"})
    count = rule["k"] if rule["kind"] == "top_k" else 1
    chances_IC, order_IC = logits_IC.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    chosen = []
    for chances, order in zip(chances_IC.tolist(), order_IC.tolist(), strict=True):
        ranked = list(zip(chances, order, strict=True))
        if rule["kind"] == "threshold":
            experts = [router["classes"][index] for chance, index in ranked if index and chance >= rule["threshold"]]
            chosen.append(experts[:1])
            continue
        before_none = itertools.takewhile(lambda pair: pair[1] != 0, ranked[:count])
        chosen.append([router["classes"][index] for _, index in before_none])
    return chosen


def router_loss(
    logits_IC: torch.Tensor | None,
    labels_I: torch.Tensor,
    *,
    weight: torch.Tensor,
    modality: str,
    items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Returns the mean cross-entropy over labelled items, 0 when there are none.

    Args:
        logits_IC: What the router says; None when the batch holds no item.
        labels_I: Class of each item, -100 where it is unknown. Without items all of them must be -100.
        weight: The router's weight, which gets a zero gradient when nothing is learned.
        modality: For messages.
        items_in_batch: What to divide the sum by instead, when the batch is one of several of a step.

    Raises:
        ValueError: Items and labels differ in number.
    """
    labels_I = labels_I.to(weight.device).reshape(-1)
    if logits_IC is None:
        if bool((labels_I != -100).any()):
            raise ValueError(f"There are router labels for {modality}, and the batch holds no {modality}.")
        return weight.float().sum() * 0.0
    if len(labels_I) != len(logits_IC):
        raise ValueError(f"There are {len(labels_I)} router labels for {len(logits_IC)} {modality} items.")
    count = (labels_I != -100).sum().clamp(min=1) if items_in_batch is None else items_in_batch
    return nn.functional.cross_entropy(logits_IC.float(), labels_I, ignore_index=-100, reduction="sum") / count


def _token_rows(hidden: torch.Tensor, width: int) -> torch.Tensor:
    if hidden.dim() == 4:
        hidden = hidden.flatten(2).transpose(1, 2) if hidden.shape[1] == width else hidden.flatten(1, 2)
    if hidden.shape[-1] != width:
        raise ValueError(f"The encoder's features are {hidden.shape[-1]} wide, and the router reads {width}.")
    return hidden


def _grid_sizes(inputs: Mapping[str, Any]) -> list[int] | None:
    grids = [value for key, value in inputs.items() if key.endswith("_grid_thw")]
    return grids[0].prod(-1).tolist() if grids else None


def _flat_shares(rows: int, weights: Sequence[int] | None) -> list[int]:
    if weights is None or any(rows * weight % sum(weights) for weight in weights):
        raise ValueError(f"The {rows} rows of the encoder cannot be told apart by item; {_SAY}.")
    return [rows * weight // sum(weights) for weight in weights]


def _native_tiles(config: Any, inputs: Mapping[str, Any]) -> list[int] | None:
    if "view_counts" in inputs:  # of a mix of encoders, which run on the tiles that are shown
        shares = inputs["view_kinds"].split(inputs["view_counts"].tolist())
        return [int(share.sum()) for share in shares]
    # Families with a list of resolutions leave out padding, so tokens do not tell the number of tiles.
    pinpoints, sizes = getattr(config, "image_grid_pinpoints", None), inputs.get("image_sizes")
    if pinpoints is None or sizes is None:
        return None
    return [image_size_to_num_patches(size.tolist(), pinpoints, config.vision_config.image_size) for size in sizes]


def _tile_shares(rows: int, *, tokens: Sequence[int] | None, total: int, count: int | None) -> list[int]:
    if count == rows:
        return [1] * rows
    each = total // rows
    if tokens is None or total % rows or any(part % each for part in tokens):
        raise ValueError(f"The encoder gave {rows} tiles, and how they belong to {count} items is unknown; {_SAY}.")
    return [part // each for part in tokens]


_SAY = "pass <modality>_item_tokens, the number of placeholder tokens of each item"
