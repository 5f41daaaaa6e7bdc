"""Randomness with an address: each piece of work has a generator of its own, named by seed and purpose."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["deterministic_torch", "generator_for"]


def generator_for(seed: int, *purpose: str) -> np.random.Generator:
    """Yields a generator that depends on nothing but its address.

    Args:
        seed: The family's seed.
        purpose: What it is for, such as ``"encoder", "audio"``.

    Returns:
        A fresh generator.
    """
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


@contextmanager
def deterministic_torch(seed: int, *purpose: str) -> Iterator[None]:
    """Lets torch make the same numbers again, and leaves its global state as it was.

    Fresh weights of transformers come from torch's global generator; inside this context it is a fork.

    Args:
        seed: The family's seed.
        purpose: What it is for.

    Yields:
        Nothing.
    """
    import torch  # noqa: PLC0415 - mcompose.lab imports without torch

    start = int(generator_for(seed, *purpose, "torch").integers(2**62))
    before = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(start)
        torch.use_deterministic_algorithms(mode=True)
        torch.set_num_threads(1)  # sums depend on how they are split
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            torch.set_num_threads(threads)
