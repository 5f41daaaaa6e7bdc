"""The processes that train together, as torchrun and accelerate launch them: rank and count from the environment.

Before the trainer has set the process group up, only the environment tells; afterwards ``torch.distributed`` does.
"""

from __future__ import annotations

import os

import torch
from torch import distributed

from mcompose.errors import RequestError
from mcompose.recipe import Stage

__all__ = ["barrier", "check_sharding", "is_main", "rank", "world_size"]


def world_size() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns the number of this process."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Returns whether this is the process that writes and talks."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def check_sharding(stage: Stage) -> None:
    """Refuses to shard where it would silently not happen.

    Raises:
        RequestError: There is one process, or no accelerator.
    """
    if stage.sharding != "fsdp":
        return
    if world_size() < 2:
        raise RequestError("'sharding: fsdp' needs several processes.", hint="Start it by torchrun, or leave it out.")
    if not torch.cuda.is_available():
        raise RequestError(
            "'sharding: fsdp' needs accelerators: on CPUs the model would be copied instead of cut.",
            hint="Leave 'sharding' out; several processes then train copies (DDP).",
        )
