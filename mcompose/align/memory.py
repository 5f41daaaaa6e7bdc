"""Recognises out-of-memory errors on every device, and names the setting that helps most."""

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
    """Names the setting to change first.

    Args:
        stage: Stage of the recipe.
        plan: Steps of the stage.
        precision: Precision in force.
    """
    if plan.micro > 1:
        more = next(n for n in range(stage.accumulation + 1, plan.batch + 1) if plan.batch % n == 0)
        return f"Set 'accumulation: {more}': the steps stay the same, with fewer samples at once (now {plan.micro})."
    if not stage.gradient_checkpointing:
        return "Set 'gradient_checkpointing: true': activations are recomputed instead of kept."
    if precision == "float32":
        return "Set 'precision: mixed': frozen parts take half the memory."
    if stage.train and not stage.lora:
        return "Train low-rank factors ('lora:') instead of whole parts, or lower 'max_length'."
    return "Lower 'max_length', or spread the model over several devices ('sharding: fsdp')."


@contextmanager
def explain_out_of_memory(stage: Stage, plan: StepPlan, *, precision: str) -> Iterator[None]:
    """Turns an out-of-memory error into a McomposeError with a hint.

    Args:
        stage: Stage of the recipe.
        plan: Steps of the stage.
        precision: Precision in force.

    Raises:
        McomposeError: Memory ran out while the context was open.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        message = str(error).lower()
        if isinstance(error, RuntimeError) and not any(word in message for word in _WORDS):
            raise
        size = f"{plan.micro} sample{'s' * (plan.micro > 1)} of up to {stage.max_length} tokens"
        raise McomposeError(
            f"Memory ran out while training on {size}.", hint=memory_advice(stage, plan, precision=precision)
        ) from error
