"""Random generators by seed and purpose: each piece of work has its own, so the order of the work does not matter."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["deterministic_torch", "generator_for"]


def generator_for(seed: int, *purpose: str) -> np.random.Generator:
    """Returns a generator that depends only on the seed and the purpose.

    Args:
        seed: The family's seed.
        purpose: Words that name the use, such as ``"encoder", "audio"``.

    Returns:
        A fresh generator.
    """
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


@contextmanager
def deterministic_torch(seed: int, *purpose: str) -> Iterator[None]:
    """Makes torch deterministic inside the context, and restores its global state afterwards.

    Fresh weights of transformers come from torch's global generator; inside this context it is a fork with a seed of
    its own.

    Args:
        seed: The family's seed.
        purpose: Words that name the use.

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
