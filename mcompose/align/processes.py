"""The processes that train together: rank and world size from the environment that torchrun and accelerate set.

The environment is read because the process group does not exist before the trainer is made.
"""

from __future__ import annotations

import os

import torch
from torch import distributed

from mcompose.errors import RequestError
from mcompose.recipe import Stage

__all__ = ["barrier", "check_sharding", "is_main", "rank", "world_size"]


def world_size() -> int:
    """Returns the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Returns whether this is the process that writes files and shows progress."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process gets here."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def check_sharding(stage: Stage) -> None:
    """Checks that the sharding which a stage asks for can happen.

    Raises:
        RequestError: The run has one process only, or no accelerator.
    """
    if stage.sharding != "fsdp":
        return
    if world_size() < 2:
        raise RequestError(
            "'sharding: fsdp' needs several processes.", hint="Start the run with torchrun, or remove 'sharding'."
        )
    if not torch.cuda.is_available():
        raise RequestError(
            "'sharding: fsdp' needs accelerators: on CPUs, every process would hold the whole model.",
            hint="Remove 'sharding'; several processes then train copies of the model (DDP).",
        )
