"""Learning from pairs of answers: the chosen one is to gain more probability than the rejected one since the start.

With the sum of log-probabilities of an answer's tokens, pi under the model and ref under what it was when the stage
began, the loss of a pair is::

    -log sigmoid(beta * ((pi_chosen - ref_chosen) - (pi_rejected - ref_rejected)))

Both answers go through the network in one batch, with the experts that the data's domain names: the chosen ones are the
first half of the rows. The reference is computed once for every pair, before the first step and with the same routes,
by the untrained model itself; so no second model is held.

Paper: Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290, equation 7; Peng et al. 2024, Chimera,
arXiv:2412.05983, supplement (60 thousand pairs, one epoch; learning rate and beta are not given).
Differs: not through TRL's trainer. That makes its own batches, without the experts that an item goes to, replaces the
network's forward by one of its own, and holds a second model or, for media, refuses to compute the reference
beforehand; its loss is what the tests compare with. The end of the answer's turn counts as part of it, as there.

Letters: B rows, P pairs (B = 2P), L tokens, V vocabulary, N learnt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn import functional as F

from mcompose.align.data.collator import IGNORED
from mcompose.align.data.samples import Sample
from mcompose.errors import NumericsError, RequestError

__all__ = [
    "ANSWER_LABELS",
    "PairCollator",
    "PreferenceLoss",
    "answer_log_probs",
    "check_pair",
    "pair_key",
    "reference_log_probs",
    "sigmoid_losses",
]

ANSWER_LABELS: Final = "answer_labels"
"""Where a batch of pairs has its labels: under the usual name, the network and the Trainer would count them."""
_REFERENCE: Final = "reference_log_probs"


def sigmoid_losses(
    chosen_P: torch.Tensor, rejected_P: torch.Tensor, *, reference_2P: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each pair.

    Args:
        chosen_P: Log-probability of each chosen answer.
        rejected_P: Of each rejected one.
        reference_2P: Of both when the stage began (2, P), the chosen first.
        beta: How strongly the model is held to that.

    Returns:
        Losses (P,), and margins (P,): beta times by how much more the chosen answer gained than the rejected one.
    """
    margins_P = beta * ((chosen_P - reference_2P[0]) - (rejected_P - reference_2P[1]))
    return -F.logsigmoid(margins_P), margins_P


def answer_log_probs(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """Sums the log-probabilities of what is learnt, row by row.

    Args:
        logits_BLV: Of the network; those at a place predict the next token.
        labels_BL: Tokens; -100 where nothing is learnt.

    Returns:
        (B,), float32.
    """
    learnt_BL = labels_BL[:, 1:] != IGNORED
    log_probs_NV = logits_BLV[:, :-1][learnt_BL].float().log_softmax(-1)
    said_N = log_probs_NV.gather(-1, labels_BL[:, 1:][learnt_BL][:, None])[:, 0]
    return said_N.new_zeros(len(labels_BL)).index_add(0, learnt_BL.nonzero()[:, 0], said_N)


def pair_key(sample: Sample) -> tuple[Any, ...]:
    """What tells a pair from all others of a stage: a dataset may come twice, with other instructions or domains."""
    said = (
        tuple(part.get("text", part["type"]) for message in messages for part in message["content"])
        for messages in (sample.messages, sample.rejected or ())
    )
    return (sample.dataset, sample.index, sample.domain, *said)


class PairCollator:
    """Makes batches of pairs: the chosen answers of all, then the rejected ones.

    Args:
        collate: Samples, and their positions in the stage, to batch.

    Attributes:
        reference: What :func:`reference_log_probs` found; None before it is known.
    """

    def __init__(self, collate: Callable[[Sequence[Sample], Sequence[int]], Mapping[str, Any]]) -> None:
        self._collate = collate
        self.reference: Mapping[tuple[Any, ...], tuple[float, float]] | None = None

    def __call__(self, samples: Sequence[Sample], positions: Sequence[int] = ()) -> dict[str, Any]:
        """Makes a batch of 2P rows; once the reference is known it holds ``reference_log_probs`` (2, P) too.

        Raises:
            RequestError: A sample is no pair, or see the collator.
        """
        for sample in samples:
            check_pair(sample)
        others = [sample.other for sample in samples]
        batch = dict(self._collate([*samples, *filter(None, others)], [*positions, *positions]))
        batch[ANSWER_LABELS] = batch.pop("labels")
        if self.reference is not None:
            rows = [self.reference[pair_key(sample)] for sample in samples]
            batch[_REFERENCE] = torch.tensor(rows, dtype=torch.float32).T.contiguous()
        return batch


def check_pair(sample: Sample) -> None:
    """Refuses a sample with one answer.

    Raises:
        RequestError: It has no other.
    """
    if sample.rejected is None:
        raise RequestError(
            f"{sample.place}: the record has no 'chosen' and 'rejected', which a stage with 'dpo' learns from.",
            hint="Leave 'dpo' out, or give every record both answers.",
        )


class PreferenceLoss:
    """The loss of a stage that learns from pairs, and what its log says of them.

    Args:
        beta: See :class:`~mcompose.recipe.Preference`.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._said = [0.0, 0.0, 0.0]

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        """Mean loss of a batch, and the network's output."""
        given = {name: value for name, value in batch.items() if name not in (ANSWER_LABELS, _REFERENCE)}
        outputs = model(**given, use_cache=False)
        chosen_P, rejected_P = answer_log_probs(outputs.logits, batch[ANSWER_LABELS]).chunk(2)
        losses_P, margins_P = sigmoid_losses(chosen_P, rejected_P, reference_2P=batch[_REFERENCE], beta=self._beta)
        self._said[0] += float(margins_P.detach().sum())
        self._said[1] += float((margins_P > 0).sum())
        self._said[2] += len(margins_P)
        return losses_P.mean(), outputs

    def take_totals(self) -> list[float]:
        """Sum of margins, pairs whose chosen answer gained more, and pairs, since it was last asked."""
        said, self._said = self._said, [0.0, 0.0, 0.0]
        return said


@torch.no_grad()
def reference_log_probs(
    model: Any, batches: Iterable[tuple[Sequence[Sample], Mapping[str, Any]]]
) -> dict[tuple[Any, ...], tuple[float, float]]:
    """What a model says of pairs, in evaluation mode.

    Args:
        model: As it is when the stage begins.
        batches: Samples, and their batch on the model's device.

    Returns:
        :func:`pair_key` to the log-probabilities of the chosen and the rejected answer.

    Raises:
        NumericsError: One is not finite.
    """
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    was = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for samples, batch in batches:
            given = {name: value for name, value in batch.items() if name not in (ANSWER_LABELS, _REFERENCE, "tokens")}
            log_probs = answer_log_probs(model(**given, use_cache=False).logits, batch[ANSWER_LABELS])
            for sample, chosen, rejected in zip(samples, *log_probs.view(2, -1).tolist(), strict=True):
                found[pair_key(sample)] = (chosen, rejected)
            if not bool(log_probs.isfinite().all()):
                raise NumericsError(f"{samples[0].place}: the model gives no probability to an answer.")
    finally:
        for module, training in was.items():
            module.training = training
    return found
