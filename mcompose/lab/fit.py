"""The lab's training loop, and the training of the base language model on text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mcompose.anatomy import group_part
from mcompose.lab.batches import WordTable, collate, spell_numbers
from mcompose.lab.questions import JOINT_TASKS, SINGLE_TASKS, Question, ask
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import FitSettings, NumbersSettings
from mcompose.lab.words import ATTRIBUTES, VOCABULARY

__all__ = ["answer_loss", "fit", "text_accuracy", "text_config", "train_base", "tuned_weights"]

# Tasks for 1, 2, 3 and 4 inputs, and how often each number of inputs is drawn. The four-option tasks are the hardest,
# and sum and same take the most steps.
_KINDS = (("name", "parity", "size", "choice", "choice"), JOINT_TASKS, ("common",), ("common",))
_SHARES = (0.25, 0.45, 0.15, 0.15)
_TRUTH_LAYER = 2
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_OPTION_PLACES = (-10, -8, -6, -4)  # of the four attribute words, counted from the end of prompt + answer + end


def text_config(settings: NumbersSettings) -> LlamaConfig:
    """Returns the base's configuration.

    Args:
        settings: The family's settings.

    Returns:
        Configuration of a Llama; about 0.9 M parameters with the default settings.
    """
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def tuned_weights(language: nn.Module) -> list[nn.Parameter]:
    """Returns the weights that tuning changes, groups of decoupled donors among them."""
    return [
        values
        for name, values in language.named_parameters()
        if group_part(name) or (name.split(".")[-2] in _LINEAR and name.endswith("weight"))
    ]


def fit(
    parameters: Iterable[nn.Parameter],
    settings: FitSettings,
    *,
    loss: Callable[[], torch.Tensor],
    progress: Callable[[float], None] | None = None,
    fused: bool = False,
) -> float:
    """Minimises a loss.

    Args:
        parameters: Parameters to train.
        settings: Steps and learning rate.
        loss: Function that draws a batch and returns its loss.
        progress: Called with the finished share, 0 to 1, every ten steps.
        fused: Use the fused AdamW: faster for many weights, with different rounding in the last bits.

    Returns:
        The last loss; 0.0 when there are no steps.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused or None)
    warmup = max(1, settings.steps // 20)
    last = 0.0
    for step in range(settings.steps):
        share = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * min((step + 1) / warmup, max(0.02, share))
        value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        last = float(value.detach())
        if progress and step % 10 == 9:
            progress((step + 1) / settings.steps)
    return last


def answer_loss(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Computes the cross-entropy of the answer and the end token.

    Args:
        logits: Logits at the two positions before the last, (batch, 2, vocabulary).
        input_ids: Ids of prompt, answer and end token, (batch, length).

    Returns:
        The loss, a scalar.
    """
    return F.cross_entropy(logits.flatten(0, 1), input_ids[:, -2:].flatten())


def train_base(
    settings: NumbersSettings, *, seed: int, progress: Callable[[float], None] | None = None
) -> LlamaForCausalLM:
    """Trains the base on text questions over 1 to 4 inputs.

    The four-option questions are learned slowly from the answer alone, so a linear probe on the middle layer, which
    predicts for each option whether it is true, is trained together with the model. It is discarded afterwards.

    Args:
        settings: The family's settings.
        seed: The family's seed.
        progress: Called with the finished share, 0 to 1.

    Returns:
        The trained model, in evaluation mode.
    """
    model = LlamaForCausalLM(text_config(settings)).train()
    probe = nn.Linear(settings.width, 1)
    table = WordTable({word: index for index, word in enumerate(VOCABULARY)})
    generator = generator_for(seed, "base")
    layer = min(_TRUTH_LAYER, settings.layers)

    def loss() -> torch.Tensor:
        inputs = 1 + int(generator.choice(len(_KINDS), p=_SHARES))
        questions = _draw(_KINDS[inputs - 1], inputs, count=settings.base.batch, generator=generator)
        prompts = [f"{spell_numbers(q.numbers, generator=generator)} {q.text}" for q in questions]
        batch = collate(prompts, questions, table=table)
        out = model(
            input_ids=batch.input_ids[:, :-1],
            attention_mask=batch.attention_mask[:, :-1],
            logits_to_keep=2,
            output_hidden_states=True,
        )
        return answer_loss(out.logits, batch.input_ids) + _truth_loss(probe, out.hidden_states[layer], questions)

    fit([*model.parameters(), *probe.parameters()], settings.base, loss=loss, progress=progress)
    return model.eval()


def text_accuracy(model: LlamaForCausalLM, *, seed: int, count: int = 200) -> dict[str, float]:
    """Measures the base on questions whose inputs are text: the upper limit of every composition.

    Args:
        model: The base.
        seed: The family's seed; the questions differ from those of training.
        count: Questions per task.

    Returns:
        ``"name"``, ``"common-3"`` and so on -> share of right answers.
    """
    table = WordTable({word: index for index, word in enumerate(VOCABULARY)})
    generator = generator_for(seed, "text accuracy")
    kinds = [(task, 1) for task in SINGLE_TASKS] + [(task, 2) for task in JOINT_TASKS] + [("common", 3), ("common", 4)]
    accuracy = {}
    for task, inputs in kinds:
        questions = _draw((task,), inputs, count=count, generator=generator)
        prompts = [f"{spell_numbers(q.numbers, generator=generator)} {q.text}" for q in questions]
        batch = collate(prompts, questions, table=table)
        with torch.no_grad():
            ids, mask = batch.input_ids[:, :-2], batch.attention_mask[:, :-2]
            answers = model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].argmax(-1)
        name = f"{task}-{inputs}" if task == "common" else task
        accuracy[name] = float((answers == batch.input_ids[:, -2]).float().mean())
    return accuracy


def _draw(tasks: tuple[str, ...], inputs: int, *, count: int, generator: np.random.Generator) -> list[Question]:
    chosen = generator.integers(len(tasks), size=count)
    return [ask(tasks[i], inputs, generator=generator) for i in chosen]


def _truth_loss(probe: nn.Linear, hidden: torch.Tensor, questions: list[Question]) -> torch.Tensor:
    rows = [i for i, q in enumerate(questions) if q.task in {"choice", "common"}]
    if not rows:
        return hidden.new_zeros(())
    # The hidden states do not include the end token, so positions counted from the end move by one.
    places = [place + 1 for place in _OPTION_PLACES]
    truth = [
        [float(all(n in ATTRIBUTES[name] for n in questions[i].numbers)) for name in questions[i].text.split()[-8:-1:2]]
        for i in rows
    ]
    return F.binary_cross_entropy_with_logits(probe(hidden[rows][:, places])[..., 0], hidden.new_tensor(truth))
