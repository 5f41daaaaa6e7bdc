"""The family ``smol``: token batches, and the base's training on questions whose objects are text.

The base is SmolLM2-135M-Instruct, whose linear layers are trained until it answers the questions in text. It is made
once for all seeds, as a released base would be; donors start from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from mcompose.lab.batches import Batch, pad_rows
from mcompose.lab.fit import answer_loss, fit, tuned_weights
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import FitSettings
from mcompose.lab.smol.questions import PAIR_TASKS, SINGLE_TASKS, text_question

__all__ = ["batch_of", "fast", "text_accuracy", "tune_base"]

_KINDS: Final = (SINGLE_TASKS, (*PAIR_TASKS, "common"), ("common",))
_SHARES: Final = (0.3, 0.4, 0.3)


def fast() -> Any:
    """Returns a context with matrix products in bfloat16; weights, gradients and the optimiser stay in float32."""
    return torch.autocast("cpu", torch.bfloat16)


def batch_of(prompts: Sequence[str], answers: Sequence[str], *, tokenizer: Any) -> Batch:
    """Pads prompts on the left, so that all answers are in one column.

    Args:
        prompts: Full texts up to the answer.
        answers: One word each, which with the space before it must be one token.
        tokenizer: Tokenizer of the language model.

    Returns:
        Prompt, answer and end token; labels are the last two.

    Raises:
        ValueError: An answer is not one token.
    """
    heads = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    tails = tokenizer([f" {answer}" for answer in answers], add_special_tokens=False)["input_ids"]
    if any(len(tail) != 1 for tail in tails):
        raise ValueError(f"An answer among {sorted(set(answers))} is not one token.")
    rows = [[*head, *tail, tokenizer.eos_token_id] for head, tail in zip(heads, tails, strict=True)]
    return pad_rows(rows, pad=tokenizer.eos_token_id)


def tune_base(
    model: Any, tokenizer: Any, fitting: FitSettings, *, seed: int, progress: Callable[[float], None] | None = None
) -> float:
    """Trains the language model's linear layers on text questions about one to three objects.

    Args:
        model: Language model in float32; trained in place.
        tokenizer: Tokenizer of the model.
        fitting: Steps, learning rate and batch size.
        seed: Seed of the questions.
        progress: Called with the finished share, 0 to 1.

    Returns:
        The last loss.
    """
    generator = generator_for(seed, "smol base")
    model.requires_grad_(requires_grad=False)
    trained: list[Any] = [values.requires_grad_() for values in tuned_weights(model.model)]

    def loss() -> torch.Tensor:
        inputs = 1 + int(generator.choice(len(_KINDS), p=_SHARES))
        tasks = _KINDS[inputs - 1]
        drawn = [
            text_question(tasks[int(generator.integers(len(tasks)))], inputs, generator=generator)
            for _ in range(fitting.batch)
        ]
        batch = batch_of([f"{s} {q.text}" for s, q in drawn], [q.answer for _, q in drawn], tokenizer=tokenizer)
        with fast():
            out = model(
                input_ids=batch.input_ids[:, :-1], attention_mask=batch.attention_mask[:, :-1], logits_to_keep=2
            )
        return answer_loss(out.logits.float(), batch.input_ids)

    last = fit(trained, fitting, loss=loss, progress=progress, fused=True)
    model.requires_grad_(requires_grad=False)
    return last


def text_accuracy(model: Any, tokenizer: Any, *, seed: int, count: int = 100) -> dict[str, float]:
    """Measures the share of right answers to held-out text questions, by task."""
    generator = generator_for(seed, "smol text accuracy")
    kinds = [(task, 1) for task in SINGLE_TASKS] + [(task, 2) for task in (*PAIR_TASKS, "common")] + [("common", 3)]
    found = {}
    for task, inputs in kinds:
        drawn = [text_question(task, inputs, generator=generator) for _ in range(count)]
        batch = batch_of([f"{s} {q.text}" for s, q in drawn], [q.answer for _, q in drawn], tokenizer=tokenizer)
        ids, mask = batch.input_ids[:, :-2], batch.attention_mask[:, :-2]
        with torch.no_grad(), fast():
            said = model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].argmax(-1)
        name = f"{task}-{inputs}" if task == "common" else task
        found[name] = float((said == batch.input_ids[:, -2]).float().mean())
    return found
