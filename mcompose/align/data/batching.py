"""Which samples come together in a batch: in the mixture's order, or grouped by length so that little is padded.

The mixture has its order already, so the sampler of a run counts from 0. Grouped, transformers' own rule is used on
estimated lengths: shuffled megabatches, sorted inside. What a sample costs is estimated from a few that are measured:
characters of a token, and tokens of a medium after the processor's expansion.
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

_MEGABATCHES = 50  # batches that are sorted together


@dataclass(frozen=True)
class TokenRates:
    """What text and media cost.

    Args:
        characters_per_token: Characters of text that a token holds; the template's own words count as text.
        media_tokens: Modality -> tokens of an item.
    """

    characters_per_token: float
    media_tokens: dict[str, float]


def token_rates(mixture: Mixture, collator: Collator, *, samples: int = 8) -> TokenRates:
    """Measures some samples of every modality, and of text.

    Args:
        mixture: The samples.
        collator: Encodes them.
        samples: How many of each are measured.

    Returns:
        The rates; a modality that does not occur is left out.
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
            own = int((types == TYPE_IDS[modality]).sum()) / len(items)
            tokens.setdefault(modality, []).append(own + experts)
    rates = {modality: sum(tokens[modality]) / len(tokens[modality]) for modality in MODALITIES if modality in tokens}
    return TokenRates(max(characters, 1) / max(text_tokens, 1), rates)


class MixtureSampler(Sampler[int]):
    """Numbers of a mixture's samples, epoch by epoch.

    Args:
        mixture: The mixture; its epoch follows this sampler's.
        batch_size: Samples that are sorted next to each other: of a step over all processes. 0 keeps the mixture's
            order.
        rates: What text and media cost, for the lengths; default: rough ones.
    """

    def __init__(self, mixture: Mixture, *, batch_size: int = 0, rates: TokenRates | None = None) -> None:
        self.mixture, self.batch_size = mixture, batch_size
        self.rates = rates
        self.epoch = mixture.epoch

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """Turns to another epoch, and the mixture with it."""
        self.epoch = epoch
        self.mixture.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Yields the epoch's numbers."""
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
        known: dict[str, Any] = {}
        if self.rates is not None:
            known = {
                "characters_per_token": self.rates.characters_per_token,
                "media_tokens": self.rates.media_tokens,
            }
        return self.mixture.lengths(epoch=self.epoch, **known)


def grouped_places(mixture: Mixture, *, total: int, batch_size: int, rates: TokenRates | None = None) -> list[int]:
    """Returns the order of a whole stage with samples of like length together.

    Args:
        mixture: The samples; its epoch is left as it was.
        total: Samples of the stage.
        batch_size: Samples that are sorted next to each other: of a step over all processes.
        rates: What text and media cost.

    Returns:
        Places in the endless row of epochs: ``epoch * len(mixture) + index``.
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
    """Returns an error as it was raised, out of the report that a loader's worker makes of it.

    Args:
        error: What a loader raised: its message is a worker's whole traceback, or one sentence already.

    Returns:
        The error with its own sentence.
    """
    if "Original Traceback" not in error.message:
        return error
    kind = type(error).__name__
    _, found, sentence = error.message.rpartition(f"{kind}: ")
    return type(error)(sentence.strip()) if found else error
