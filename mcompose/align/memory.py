"""Out of memory: recognised on every device, and answered with the setting that helps most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mcompose.align.stage import StepPlan
from mcompose.errors import McomposeError
from mcompose.recipe import Stage

__all__ = ["explain_out_of_memory", "memory_advice"]

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def memory_advice(stage: Stage, plan: StepPlan, *, precision: str) -> str:
    """Which setting to turn first.

    Args:
        stage: The recipe's stage.
        plan: Its steps.
        precision: In force.
    """
    if plan.micro > 1:
        more = next(n for n in range(stage.accumulation + 1, plan.batch + 1) if plan.batch % n == 0)
        return f"Write 'accumulation: {more}': the same steps with fewer samples at once (now {plan.micro})."
    if not stage.gradient_checkpointing:
        return "Write 'gradient_checkpointing: true': activations are made again instead of kept."
    if precision == "float32":
        return "Write 'precision: mixed': what is frozen takes half the room."
    if stage.train and not stage.lora:
        return "Train low-rank factors ('lora:') instead of whole parts, or lower 'max_length'."
    return "Lower 'max_length', or spread the model over several devices ('sharding: fsdp')."


@contextmanager
def explain_out_of_memory(stage: Stage, plan: StepPlan, *, precision: str) -> Iterator[None]:
    """Turns an out-of-memory error into a sentence.

    Raises:
        McomposeError: Memory ran out inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, RuntimeError) and not any(word in said for word in _WORDS):
            raise
        size = f"{plan.micro} sample{'s' * (plan.micro > 1)} of up to {stage.max_length} tokens"
        raise McomposeError(
            f"Memory ran out while a piece of {size} was trained.", hint=memory_advice(stage, plan, precision=precision)
        ) from error
