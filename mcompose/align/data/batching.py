"""Orders samples into batches: in the mixture's order, or grouped by length to reduce padding.

The mixture is shuffled already, so without grouping the sampler counts from 0. Grouping applies transformers' own rule
to estimated lengths: shuffled megabatches, each sorted by length. Lengths are estimated from a few measured samples:
characters per token, and tokens per medium after the processor's expansion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from mcompose.align.data.collator import Collator
from mcompose.align.data.mixture import Mixture
from mcompose.errors import McomposeError
from mcompose.modalities import MODALITIES
from mcompose.modeling import EXPERT_TYPE, TYPE_IDS

__all__ = ["MixtureSampler", "TokenRates", "from_worker", "grouped_places", "token_rates"]

_MEGABATCHES = 50  # batches sorted together


@dataclass(frozen=True)
class TokenRates:
    """Rates to estimate the tokens of a sample.

    Args:
        characters_per_token: Characters of text per token; tokens of the chat template count as text.
        media_tokens: Modality -> tokens per item.
    """

    characters_per_token: float
    media_tokens: dict[str, float]


def token_rates(mixture: Mixture, collator: Collator, *, samples: int = 8) -> TokenRates:
    """Measures some samples with each set of modalities.

    Args:
        mixture: Samples to choose from.
        collator: Collator that encodes them.
        samples: Number of samples to measure per dataset and set of modalities.

    Returns:
        The rates, without modalities that do not occur.
    """
    characters = text_tokens = 0
    tokens: dict[str, list[float]] = {}
    for sample in mixture.varied(samples):
        batch = collator.encode([sample])
        types = batch["mm_token_type_ids"]
        characters += sample.characters()
        text_tokens += int((types == 0).sum())
        media = sample.media()
        experts = int((types == EXPERT_TYPE).sum()) / max(1, sum(map(len, media.values())))
        for modality, items in media.items():
            tokens_per_item = int((types == TYPE_IDS[modality]).sum()) / len(items)
            tokens.setdefault(modality, []).append(tokens_per_item + experts)
    rates = {modality: sum(tokens[modality]) / len(tokens[modality]) for modality in MODALITIES if modality in tokens}
    return TokenRates(max(characters, 1) / max(text_tokens, 1), rates)


class MixtureSampler(Sampler[int]):
    """Sampler of a mixture's indices, epoch by epoch.

    Args:
        mixture: Mixture to sample; its epoch follows this sampler's.
        batch_size: Samples of a step over all processes, which get similar lengths; 0 keeps the mixture's order.
        rates: Rates to estimate lengths; default: rough ones.
    """

    def __init__(self, mixture: Mixture, *, batch_size: int = 0, rates: TokenRates | None = None) -> None:
        self.mixture, self.batch_size = mixture, batch_size
        self.rates = rates
        self.epoch = mixture.epoch

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """Switches to another epoch, and the mixture with it."""
        self.epoch = epoch
        self.mixture.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch."""
        if not self.batch_size:
            return iter(range(len(self.mixture)))
        generator = torch.Generator()
        generator.manual_seed(self.mixture.seed * 1_000_003 + self.epoch)
        return iter(
            get_length_grouped_indices(
                self._lengths(), self.batch_size, mega_batch_mult=self._megabatch(), generator=generator
            )
        )

    def _megabatch(self) -> int:
        return max(1, min(_MEGABATCHES, len(self.mixture) // (self.batch_size * 4)))

    def _lengths(self) -> list[int]:
        rates: dict[str, Any] = {}
        if self.rates is not None:
            rates = {
                "characters_per_token": self.rates.characters_per_token,
                "media_tokens": self.rates.media_tokens,
            }
        return self.mixture.lengths(epoch=self.epoch, **rates)


def grouped_places(mixture: Mixture, *, total: int, batch_size: int, rates: TokenRates | None = None) -> list[int]:
    """Orders a whole stage so that samples of similar length are together.

    Args:
        mixture: Samples to order; its epoch is not changed.
        total: Number of samples of the stage.
        batch_size: Samples of a step over all processes, which get similar lengths.
        rates: Rates to estimate lengths; default: rough ones.

    Returns:
        Places in the endless sequence of epochs: ``epoch * len(mixture) + index``.
    """
    places: list[int] = []
    sampler = MixtureSampler(mixture, batch_size=batch_size, rates=rates)
    epoch = 0
    while len(places) < total:
        sampler.epoch = epoch
        places += [epoch * len(mixture) + index for index in sampler]
        epoch += 1
    return places[:total]


def from_worker(error: McomposeError) -> McomposeError:
    """Extracts the original error from the one that a loader's worker reported.

    Args:
        error: Error that a loader raised; its message may be a worker's whole traceback.

    Returns:
        The error with its original message.
    """
    if "Original Traceback" not in error.message:
        return error
    kind = type(error).__name__
    _, found, sentence = error.message.rpartition(f"{kind}: ")
    return type(error)(sentence.strip()) if found else error
