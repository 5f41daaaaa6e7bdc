"""Batches of prompts as token ids: the lab's questions, with numbers as text or as media placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcompose.lab.words import FILLERS, NUMBER_WORDS
from mcompose.modalities import MODALITIES

if TYPE_CHECKING:
    import torch

    from mcompose.lab.questions import Question

__all__ = ["Batch", "WordTable", "collate", "pad_rows", "spell_numbers"]

_LABELS = (*MODALITIES, "text")
_MAX_FILLERS = 4


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts with their answers.

    Args:
        input_ids: Ids of prompt, answer and end token, (batch, length); every prompt ends at ``length - 3``.
        attention_mask: 0 on padding and 1 elsewhere, (batch, length).
        labels: Ids of answer and end token, -100 elsewhere, (batch, length).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


class WordTable:
    """Maps words to ids, faster than a tokenizer does.

    Args:
        vocabulary: The tokenizer's vocabulary, word to id.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.ids = vocabulary
        self.pad, self.bos, self.eos = (vocabulary[word] for word in ("<pad>", "<bos>", "<eos>"))

    def encode(self, text: str) -> list[int]:
        """Returns the start token's id and the ids of a text's words, which are separated by spaces."""
        return [self.bos, *(self.ids[word] for word in text.split())]


def spell_numbers(numbers: Sequence[int], *, generator: np.random.Generator) -> str:
    """Writes numbers as text inputs, each after a modality's name or ``text``, with filler words around it.

    Args:
        numbers: Numbers to write, 0 to 9.
        generator: Source of randomness.

    Returns:
        A text such as ``image um seven audio three here so``.
    """
    labels = [_LABELS[i] for i in generator.permutation(len(_LABELS))[: len(numbers)]]
    phrases = []
    for label, number in zip(labels, numbers, strict=True):
        fillers = [FILLERS[i] for i in generator.integers(len(FILLERS), size=generator.integers(_MAX_FILLERS))]
        place = int(generator.integers(len(fillers) + 1))
        phrases.append(" ".join([label, *fillers[:place], NUMBER_WORDS[number], *fillers[place:]]))
    return " ".join(phrases)


def collate(prompts: Sequence[str], questions: Sequence[Question], *, table: WordTable) -> Batch:
    """Pads prompts on the left, so that all answers are in one column.

    Args:
        prompts: Full texts, inputs and question.
        questions: Questions of the prompts; their answers are appended.
        table: Table from words to ids.

    Returns:
        The batch.
    """
    rows = [[*table.encode(p), table.ids[q.answer], table.eos] for p, q in zip(prompts, questions, strict=True)]
    return pad_rows(rows, pad=table.pad)


def pad_rows(rows: Sequence[Sequence[int]], *, pad: int) -> Batch:
    """Pads rows on the left, so that all answers are in one column.

    Args:
        rows: Ids of prompt, answer (one token) and end token.
        pad: Id of the padding token.

    Returns:
        The batch; labels are answer and end token.
    """
    import torch  # noqa: PLC0415 - mcompose.lab imports without torch

    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    labels = np.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))
