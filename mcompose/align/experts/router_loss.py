"""The router's loss over a whole optimizer step: weighted cross-entropy, the same however the step is cut and shared.

A step's loss is the sum over its items, each with the weight of its class, over the sum of these weights. An item
labelled -100 weighs nothing, and a step without labelled items has loss zero. So two pieces, or two processes, make the
step that one makes.

Letters: N items, C classes.

Paper: Peng et al. 2024, Chimera, arXiv:2412.05983, equations 7 and 8: plain cross-entropy, added with weight 1.
Differs: a mean over the step and not over each piece; class weights are offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from mcompose.align.data.expert_routing import UNKNOWN
from mcompose.errors import RequestError, UnknownNameError, nearest_name

__all__ = ["RouterLoss", "class_weights"]


class RouterLoss:
    """Loss and hits of the routers of a stage.

    Args:
        weight: Weight of this loss beside the language model's.
        classes: Modality to the weight of each class.
    """

    def __init__(self, weight: float, classes: Mapping[str, Sequence[float]]) -> None:
        self.weight = weight
        self._weights_C = {modality: torch.tensor(tuple(row)) for modality, row in classes.items()}
        self._total = 1.0
        self._said = [0.0, 0.0, 0.0]

    def begin_step(self, labels: Sequence[Any]) -> float:
        """Sums the weights of the labels of all pieces of this process.

        Args:
            labels: ``router_labels`` of each piece; None where it has none.
        """
        return float(sum(self._items(piece)[2].sum() for piece in labels if piece is not None))

    def set_total(self, total: float) -> None:
        """Takes the sum of weights over all pieces and processes."""
        self._total = total

    def __call__(self, logits: Any, labels: Any) -> torch.Tensor:
        """Returns the part of the step's loss that a piece has.

        Args:
            logits: ``router_logits`` (N, C), or modality to them.
            labels: ``router_labels`` (N,), or modality to them.

        Returns:
            A scalar; zero with a gradient of zero when no item is labelled.
        """
        rows = _by_modality(logits, self._weights_C)
        modalities, labels_N, weights_N = self._items(labels)
        loss = torch.stack([row.float().sum() * 0.0 for row in rows.values()]).sum()
        start = 0
        for modality in modalities:
            logits_NC = rows[modality].float()
            mine_N = labels_N[start : start + len(logits_NC)].to(logits_NC.device)
            weighs_N = weights_N[start : start + len(logits_NC)].to(logits_NC.device)
            start += len(logits_NC)
            losses_N = F.cross_entropy(logits_NC, mine_N, reduction="none", ignore_index=UNKNOWN)
            loss = loss + (losses_N * weighs_N).sum() / max(self._total, 1e-12)
            known_N = mine_N != UNKNOWN
            self._said[1] += float((logits_NC.argmax(-1) == mine_N)[known_N].sum())
            self._said[2] += float(known_N.sum())
        if start != len(labels_N):
            raise ValueError(f"{len(labels_N)} router labels came for {start} items.")
        self._said[0] += float(loss.detach())
        return self.weight * loss

    def take_totals(self) -> list[float]:
        """Loss, right ones and labelled ones since it was last asked; of this process."""
        said, self._said = self._said, [0.0, 0.0, 0.0]
        return said

    def _items(self, labels: Any) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Modalities, labels (N,) one after the other, and their weights (N,)."""
        rows = _by_modality(labels, self._weights_C)
        kept = {modality: row.cpu() for modality, row in rows.items() if len(row)}
        weights = [
            torch.where(row == UNKNOWN, 0.0, self._weights_C[modality][row.clamp(min=0)])
            for modality, row in kept.items()
        ]
        nothing = torch.zeros(0)
        return list(kept), torch.cat([nothing.long(), *kept.values()]), torch.cat([nothing, *weights])


def _by_modality(value: Any, modalities: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if isinstance(value, Mapping):
        return {modality: value[modality] for modality in modalities if modality in value}
    return {next(iter(modalities)): value}


def class_weights(
    spec: Any, classes: Mapping[str, Sequence[str]], counts: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Returns the weight of each class of each router.

    Args:
        spec: None, ``balanced``, or class to number.
        classes: Modality to names of classes; the first is none.
        counts: Modality to the items of each class in the data; for ``balanced``.

    Returns:
        Modality to weights; ``balanced`` gives n / (C * n_c), as scikit-learn does, over the classes that occur.

    Raises:
        UnknownNameError: There is no such class.
        RequestError: The data cannot be counted.
    """
    if spec == "balanced":
        if not counts:
            raise RequestError("The items of a stream cannot be counted.", hint="Give 'class_weights' as numbers.")
        return {modality: _balanced(counts[modality]) for modality in classes}
    known = list(dict.fromkeys(name for names in classes.values() for name in names))
    for name in spec or {}:
        if name not in known:
            raise UnknownNameError(
                f"'class_weights' names '{name}', which is not a class.", hint=nearest_name(name, known)
            )
    return {modality: [(spec or {}).get(name, 1.0) for name in names] for modality, names in classes.items()}


def _balanced(counts: Sequence[float]) -> list[float]:
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]
