"""Losses by task: what a step's loss was on the samples of each task, for the log and the plot of a stage.

The loss of a task is the mean over the learned tokens of its samples in a step, over all processes; a step without such
samples has no row for it. It is computed from the logits of the training pass, so nothing is run twice, and does not
count weights of routers.

Letters: B rows, L tokens, V vocabulary, N learned tokens, K tokens that are left when hidden ones are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from mcompose.align.data.collator import IGNORED

__all__ = ["LOSS", "TOKENS", "TaskLosses"]

LOSS = "loss/"
"""What the names of tasks' losses begin with in the log."""
TOKENS = "answer_tokens/"
"""What the names of the counts of their learned tokens begin with."""


class TaskLosses:
    """Sums of a step's losses by task.

    Args:
        tasks: Names of the tasks; ``tasks`` in a batch counts them.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, outputs: Any, batch: Mapping[str, Any], tasks: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            outputs: The network's, with logits (B, L, V), or (B, K, V) and ``kept_places``.
            batch: Its inputs.
            tasks: Number of the task of every sample.
        """
        labels_BL = batch["labels"]
        tasks_BL = _by_token(tasks.to(labels_BL.device), batch)
        kept_BK = getattr(outputs, "kept_places", None)
        if kept_BK is not None:
            places_BK = kept_BK.clamp(min=0)
            labels_BL = labels_BL.gather(1, places_BK).masked_fill(kept_BK < 0, IGNORED)
            tasks_BL = tasks_BL.gather(1, places_BK)
        logits_BLV = outputs["logits"]
        learnt_BL = labels_BL[:, 1:] != IGNORED
        losses_N = F.cross_entropy(logits_BLV[:, :-1][learnt_BL].float(), labels_BL[:, 1:][learnt_BL], reduction="none")
        sums = losses_N.new_zeros(2, len(self.tasks))
        tasks_N = tasks_BL[:, 1:][learnt_BL]
        sums[0].index_add_(0, tasks_N, losses_N)
        sums[1].index_add_(0, tasks_N, torch.ones_like(losses_N))
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device) -> torch.Tensor:
        """Returns and resets the sums: losses and learned tokens of every task (2, tasks)."""
        sums, self._sums = self._sums, None
        return torch.zeros(2, len(self.tasks), device=device) if sums is None else sums

    def row(self, sums: torch.Tensor) -> dict[str, float]:
        """Returns the fields of the log for the sums of all processes; tasks without tokens are left out."""
        made: dict[str, float] = {}
        for task, loss, tokens in zip(self.tasks, *sums.tolist(), strict=True):
            if tokens:
                made |= {LOSS + task: loss / tokens, TOKENS + task: int(tokens)}
        return made


def _by_token(tasks: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
    """Returns the task of every token (B, L)."""
    shape = batch["labels"].shape
    if len(tasks) == shape[0]:
        return tasks[:, None].expand(shape)
    # A packed row: positions begin again at 0 with every sample.
    return tasks[(batch["position_ids"] == 0).cumsum(-1) - 1]
