"""Plans a stage: how many steps it has, how a step is split, and which fingerprint tells one run from another.

The recipe's ``batch_size`` counts the samples of one optimizer step over all processes. A step is split into
``accumulation`` pieces, which the processes share: two processes with one piece each do what one does with two.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from mcompose.errors import RequestError
from mcompose.recipe import Stage

__all__ = ["StepPlan", "fingerprint", "plan_steps", "spec_table"]

_WITHOUT_EFFECT_ON_RESULT = ("save_every", "workers", "stop_on_divergence", "sharding")
"""Settings of a stage that do not change its result."""


@dataclass(frozen=True)
class StepPlan:
    """Steps of a stage and how they are split.

    Args:
        steps: Number of optimizer steps.
        batch: Samples of one step over all processes.
        micro: Samples that one process holds at once.
        pieces: Pieces of a step in each process (gradient accumulation).
        warmup: Steps in which the learning rate rises.
    """

    steps: int
    batch: int
    micro: int
    pieces: int
    warmup: int

    @property
    def samples(self) -> int:
        """Number of samples of the whole stage."""
        return self.steps * self.batch


def plan_steps(stage: Stage, *, samples: int, processes: int = 1) -> StepPlan:
    """Counts the steps of a stage and splits them.

    Args:
        stage: Stage of the recipe.
        samples: Number of samples of an epoch.
        processes: Number of processes that train together.

    Returns:
        The plan. An incomplete last batch of an epoch is filled from the next epoch.

    Raises:
        RequestError: The data are empty, or a step cannot be split among that many processes.
    """
    if samples < 1:
        raise RequestError("The data of this stage have no samples.", hint="Check 'data' and its limits.")
    batch, pieces = stage.batch_size, stage.accumulation
    if pieces < processes:
        pieces = processes
    if batch % processes or batch % pieces or pieces % processes:
        raise RequestError(
            f"A step of {batch} samples in {stage.accumulation} pieces cannot be split among {processes} processes.",
            hint="Choose 'batch_size' and 'accumulation' as multiples of the number of processes.",
        )
    steps = stage.steps or max(1, math.ceil((stage.epochs or 1.0) * samples / batch))
    warmup = round(stage.warmup * steps) if stage.warmup < 1 else round(stage.warmup)
    return StepPlan(steps, batch, batch // pieces, pieces // processes, min(warmup, steps))


def spec_table(stage: Stage) -> dict[str, Any]:
    """Returns the settings of a stage as plain values, in the recipe's order, without empty ones."""
    table = stage.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in table.items() if value not in ([], {})}


def fingerprint(stage: Stage, *, parent: str, data: str = "", versions: dict[str, str] | None = None) -> str:
    """Digests what decides the result of a run: on one machine, equal fingerprints give equal losses.

    Args:
        stage: Stage of the recipe.
        parent: Identity of the checkpoint or stage that this one starts from.
        data: Digest of the data.
        versions: Library to version, for those that decide the numbers.

    Returns:
        The fingerprint, 64 hex digits.
    """
    spec = {key: value for key, value in spec_table(stage).items() if key not in _WITHOUT_EFFECT_ON_RESULT}
    text = json.dumps([spec, parent, data, versions or {}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
