"""What is learned, checked before the first step: labels must stand on the answers and never on a medium.

A template, a tokenizer or a processor that does not do what it says shows here, in seconds and with a sentence, and not
in a loss curve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from mcompose.align.data.collator import IGNORED, Collator
from mcompose.align.data.samples import Sample
from mcompose.errors import RequestError
from mcompose.modalities import MODALITIES
from mcompose.modeling import TYPE_IDS

__all__ = ["CheckedSample", "check_labels"]


@dataclass(frozen=True)
class CheckedSample:
    """What the check saw in one sample.

    Args:
        place: Place of the sample, for messages.
        tokens: Its tokens, media included.
        media_tokens: Modality -> tokens of its media.
        learned: Text that is learned, one string an answer.
    """

    place: str
    tokens: int
    media_tokens: dict[str, int]
    learnt: tuple[str, ...]


def check_labels(mixture: Any, collator: Collator, *, samples: int = 8) -> tuple[CheckedSample, ...]:
    """Checks some samples of a mixture, spread over it.

    Args:
        mixture: Samples, by number or as a stream.
        collator: Makes the batches.
        samples: How many are looked at.

    Returns:
        What was seen; of a pair both answers.

    Raises:
        RequestError: Labels do not fit the text or the media of a sample; the sentence names it.
    """
    chosen = _chosen(mixture, samples)
    return tuple(_checked(one, collator) for sample in chosen for one in (sample, sample.other) if one is not None)


def _chosen(mixture: Any, count: int) -> Iterable[Sample]:
    if not hasattr(mixture, "__len__"):
        return islice(iter(mixture), count)
    total = len(mixture)
    return [mixture[place * total // min(count, total)] for place in range(min(count, total))]


def _checked(sample: Sample, collator: Collator) -> CheckedSample:
    batch = collator.encode([sample])
    ids_L, labels_L, types_L = (batch[name][0] for name in ("input_ids", "labels", "mm_token_type_ids"))
    learnt_L = labels_L != IGNORED
    media_tokens = _check_media(sample, types_L, learnt_L)
    if not learnt_L.any():
        raise RequestError(f"{sample.place}: no token of its answers is learnt.")
    if not torch.equal(labels_L[learnt_L], ids_L[learnt_L]):
        raise RequestError(f"{sample.place}: labels are not the tokens that stand there.")
    runs = _runs(learnt_L)
    if collator.mask_answers:
        _check_words(sample, collator, [ids_L[start:end] for start, end in runs])
    decoded = tuple(collator.tokenizer.decode(ids_L[start:end]) for start, end in runs)
    return CheckedSample(sample.place, len(ids_L), media_tokens, decoded)


def _check_media(sample: Sample, types_L: torch.Tensor, learnt_L: torch.Tensor) -> dict[str, int]:
    media = sample.media()
    found = {modality: int((types_L == TYPE_IDS[modality]).sum()) for modality in MODALITIES}
    for modality, count in found.items():
        items = len(media.get(modality, []))
        if count < items or (count and not items):
            raise RequestError(f"{sample.place}: {items} {modality} item(s) became {count} tokens.")
    if (types_L[learnt_L] != 0).any():
        raise RequestError(f"{sample.place}: labels stand on the tokens of a medium.")
    return {modality: count for modality, count in found.items() if count}


def _runs(learnt_L: torch.Tensor) -> list[tuple[int, int]]:
    """(start, end) of each stretch of learned tokens."""
    places = torch.nonzero(learnt_L)[:, 0].tolist()
    starts = [p for i, p in enumerate(places) if i == 0 or places[i - 1] != p - 1]
    ends = [p + 1 for i, p in enumerate(places) if i == len(places) - 1 or places[i + 1] != p + 1]
    return list(zip(starts, ends, strict=True))


def _check_words(sample: Sample, collator: Collator, runs: list[torch.Tensor]) -> None:
    tokenizer = collator.tokenizer
    written = collator.writer.write(sample)
    # Through the tokenizer and back, so that what it cannot say is not held against the labels.
    wanted = "".join(
        _bare(tokenizer.decode(tokenizer(written.text[start:end], add_special_tokens=False)["input_ids"]))
        for start, end in written.answers
    )
    found = "".join(_bare(tokenizer.decode(ids_L)) for ids_L in runs)
    # A token at the border may hold characters of both sides.
    slack = sum(len(tokenizer.decode(ids_L[[0, -1]])) for ids_L in runs)
    if not wanted or (found != wanted and not (_inside(wanted, found) and len(found) <= len(wanted) + slack)):
        raise RequestError(
            f"{sample.place}: what is learnt is not what is answered: '{found[:60]}' for '{wanted[:60]}'.",
            hint="The tokenizer's offsets or the chat template are at fault.",
        )


def _inside(wanted: str, found: str) -> bool:
    rest = iter(found)
    return all(letter in rest for letter in wanted)


def _bare(text: str) -> str:
    return "".join(text.split())
