"""A stage made ready to run: how many steps, how they are cut, and what tells one run from another.

The recipe's ``batch_size`` is that of one optimizer step over all processes. A step is cut into ``accumulation``
pieces, which the processes share: two processes with one piece each make the steps of one process with two.
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

_NOT_OF_THE_RESULT = ("save_every", "workers", "stop_on_divergence", "sharding")
"""Settings of a stage that change no number of its result."""


@dataclass(frozen=True)
class StepPlan:
    """How the samples are dealt.

    Args:
        steps: Optimizer steps.
        batch: Samples of one step over all processes.
        micro: Samples that one process holds at once.
        pieces: Pieces of a step in each process.
        warmup: Steps of warm-up.
    """

    steps: int
    batch: int
    micro: int
    pieces: int
    warmup: int

    @property
    def samples(self) -> int:
        """Samples of the whole stage."""
        return self.steps * self.batch


def plan_steps(stage: Stage, *, samples: int, processes: int = 1) -> StepPlan:
    """Counts steps and cuts batches.

    Args:
        stage: The recipe's stage.
        samples: Samples of the mixture.
        processes: That train together.

    Returns:
        The plan. A last, incomplete batch of an epoch is filled from the next.

    Raises:
        RequestError: The data are empty, or a step cannot be shared by so many processes.
    """
    if samples < 1:
        raise RequestError("The data of this stage hold no sample.", hint="Check 'data' and its limits.")
    batch, pieces = stage.batch_size, stage.accumulation
    if pieces < processes:
        pieces = processes
    if batch % processes or batch % pieces or pieces % processes:
        raise RequestError(
            f"A step of {batch} samples in {stage.accumulation} pieces cannot be shared by {processes} processes.",
            hint="Choose a batch_size and an accumulation that the number of processes divides.",
        )
    steps = stage.steps or max(1, math.ceil((stage.epochs or 1.0) * samples / batch))
    warmup = round(stage.warmup * steps) if stage.warmup < 1 else round(stage.warmup)
    return StepPlan(steps, batch, batch // pieces, pieces // processes, min(warmup, steps))


def spec_table(stage: Stage) -> dict[str, Any]:
    """Returns a stage's settings as plain values, in the recipe's order, without what is empty."""
    table = stage.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in table.items() if value not in ([], {})}


def fingerprint(stage: Stage, *, parent: str, data: str = "", versions: dict[str, str] | None = None) -> str:
    """Returns what a run is made of: equal fingerprints make equal losses on one machine.

    Args:
        stage: The recipe's stage.
        parent: Identity of what the stage begins from.
        data: Digest of the data.
        versions: Versions of the libraries that decide the numbers.

    Returns:
        64 hex digits.
    """
    spec = {key: value for key, value in spec_table(stage).items() if key not in _NOT_OF_THE_RESULT}
    text = json.dumps([spec, parent, data, versions or {}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
