"""Answers to a lab family's questions with matrix products in bfloat16, as its donors were trained.

Weights and everything between the products stay float32. On processors with bfloat16 units this halves the cost of a
model of a hundred million parameters; media are prepared as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcompose.evaluate import EvaluateOptions, evaluate_task, figures, load_evaluated_model, load_task

__all__ = ["mixed_results"]


class _Mixed:
    """A model whose generation runs with products in bfloat16."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, **inputs: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self._model.generate(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def mixed_results(checkpoint: Path, tasks: Sequence[Path], *, batch: int, leave_out: bool) -> list[Any]:
    """Evaluates a checkpoint on tasks.

    Args:
        checkpoint: Its folder.
        tasks: Task files.
        batch: Questions asked at once.
        leave_out: Drop inputs of modalities that the checkpoint lacks.

    Returns:
        Rows with ``task``, ``metric`` and ``value``.
    """
    loaded = load_evaluated_model(checkpoint)
    evaluated = replace(loaded, model=_Mixed(loaded.model))
    rows: list[Any] = []
    for path in tasks:
        task = load_task(path)
        made = evaluate_task(evaluated, task, options=EvaluateOptions(batch_size=batch, leave_out=leave_out))
        rows += figures(task, made)
    return rows
