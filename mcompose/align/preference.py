"""Learning from preference pairs (DPO): the chosen answer is to gain more probability than the rejected one.

Let pi be the sum of log-probabilities of an answer's tokens under the model, and ref the same under the model as it
was when the stage began. The loss of a pair is::

    -log sigmoid(beta * ((pi_chosen - ref_chosen) - (pi_rejected - ref_rejected)))

Both answers go through the network in one batch, with the experts of the data's domain; the chosen answers are the
first half of the rows. The untrained model itself computes the reference of every pair, once, before the first step
and with the same routes, so no second model is held in memory.

Paper: Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290, equation 7; Peng et al. 2024, Chimera,
arXiv:2412.05983, supplement (60 thousand pairs, one epoch; learning rate and beta are not given).
Differs: TRL's trainer is not used. It makes its own batches, without the experts of items, replaces the network's
forward, and holds a second model or, with media, refuses to compute the reference beforehand. The tests compare with
TRL's loss. The end of the answer's turn counts as part of the answer, as in TRL.

Letters: B rows, P pairs (B = 2P), L tokens, V vocabulary, N trained tokens (tokens with a label).
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
"""Name of the labels in a batch of pairs; under the usual name, the network and Trainer would use them."""
_REFERENCE: Final = "reference_log_probs"


def sigmoid_losses(
    chosen_P: torch.Tensor, rejected_P: torch.Tensor, *, reference_2P: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the loss of each pair.

    Args:
        chosen_P: Log-probability of each chosen answer.
        rejected_P: Log-probability of each rejected answer.
        reference_2P: Log-probabilities of both when the stage began (2, P), chosen first.
        beta: How strongly the model is kept near the reference.

    Returns:
        Losses (P,), and margins (P,): beta times (gain of the chosen answer minus gain of the rejected one).
    """
    margins_P = beta * ((chosen_P - reference_2P[0]) - (rejected_P - reference_2P[1]))
    return -F.logsigmoid(margins_P), margins_P


def answer_log_probs(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """Sums the log-probabilities of the tokens with a label, row by row.

    Args:
        logits_BLV: Logits of the network; those at position i predict token i + 1.
        labels_BL: Tokens; -100 where a token is not trained.

    Returns:
        (B,), float32.
    """
    trained_BL = labels_BL[:, 1:] != IGNORED
    log_probs_NV = logits_BLV[:, :-1][trained_BL].float().log_softmax(-1)
    log_probs_N = log_probs_NV.gather(-1, labels_BL[:, 1:][trained_BL][:, None])[:, 0]
    return log_probs_N.new_zeros(len(labels_BL)).index_add(0, trained_BL.nonzero()[:, 0], log_probs_N)


def pair_key(sample: Sample) -> tuple[Any, ...]:
    """Returns a key that is unique in a stage, even if a dataset is listed twice with other templates or domains."""
    texts = (
        tuple(part.get("text", part["type"]) for message in messages for part in message["content"])
        for messages in (sample.messages, sample.rejected or ())
    )
    return (sample.dataset, sample.index, sample.domain, *texts)


class PairCollator:
    """Collator of preference pairs: all chosen answers first, then the rejected ones.

    Args:
        collate: Collator of single answers; takes samples and their positions in the stage.

    Attributes:
        reference: Result of :func:`reference_log_probs`; None before it is computed.
    """

    def __init__(self, collate: Callable[[Sequence[Sample], Sequence[int]], Mapping[str, Any]]) -> None:
        self._collate = collate
        self.reference: Mapping[tuple[Any, ...], tuple[float, float]] | None = None

    def __call__(self, samples: Sequence[Sample], positions: Sequence[int] = ()) -> dict[str, Any]:
        """Makes a batch of 2P rows; once the reference is known it also holds ``reference_log_probs`` (2, P).

        Raises:
            RequestError: A sample is not a pair, or the collator raises it.
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
    """Checks that a sample has two answers.

    Raises:
        RequestError: It has only one.
    """
    if sample.rejected is None:
        raise RequestError(
            f"{sample.place}: the record does not have 'chosen' and 'rejected', which 'dpo' needs.",
            hint="Give every record both answers, or remove 'dpo'.",
        )


class PreferenceLoss:
    """Loss of a stage with preference pairs, with totals for its log.

    Args:
        beta: How strongly the model is kept near the reference; see :class:`~mcompose.recipe.Preference`.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._totals = [0.0, 0.0, 0.0]

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        """Computes the mean loss of a batch; returns the network's output too."""
        inputs = {name: value for name, value in batch.items() if name not in (ANSWER_LABELS, _REFERENCE)}
        inputs |= _prompt(model, batch)
        outputs = model(**inputs, use_cache=False)
        chosen_P, rejected_P = answer_log_probs(outputs.logits, batch[ANSWER_LABELS]).chunk(2)
        losses_P, margins_P = sigmoid_losses(chosen_P, rejected_P, reference_2P=batch[_REFERENCE], beta=self._beta)
        self._totals[0] += float(margins_P.detach().sum())
        self._totals[1] += float((margins_P > 0).sum())
        self._totals[2] += len(margins_P)
        return losses_P.mean(), outputs

    def take_totals(self) -> list[float]:
        """Returns and resets the totals: sum of margins, pairs with a positive margin, pairs."""
        totals, self._totals = self._totals, [0.0, 0.0, 0.0]
        return totals


def _prompt(model: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns where the prompt ends, which adapters that read the prompt would otherwise learn from ``labels``."""
    adapters = getattr(getattr(model, "module", model).config, "adapters", None)
    return {"prompt_mask": (batch[ANSWER_LABELS] != IGNORED).cumsum(-1) == 0} if adapters else {}


@torch.no_grad()
def reference_log_probs(
    model: Any, batches: Iterable[tuple[Sequence[Sample], Mapping[str, Any]]]
) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Computes a model's log-probabilities of both answers of every pair, in evaluation mode.

    Args:
        model: Model as it is when the stage begins.
        batches: Samples of each batch, and the batch on the model's device.

    Returns:
        :func:`pair_key` to the log-probabilities of the chosen and the rejected answer.

    Raises:
        NumericsError: A log-probability is not finite.
    """
    reference: dict[tuple[Any, ...], tuple[float, float]] = {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for samples, batch in batches:
            inputs = {name: value for name, value in batch.items() if name not in (ANSWER_LABELS, _REFERENCE, "tokens")}
            inputs |= _prompt(model, batch)
            log_probs = answer_log_probs(model(**inputs, use_cache=False).logits, batch[ANSWER_LABELS])
            for sample, chosen, rejected in zip(samples, *log_probs.view(2, -1).tolist(), strict=True):
                reference[pair_key(sample)] = (chosen, rejected)
            if not bool(log_probs.isfinite().all()):
                raise NumericsError(f"{samples[0].place}: the log-probability of an answer is not finite.")
    finally:
        for module, training in modes.items():
            module.training = training
    return reference
