"""Trains the donors: first the encoder, then the projector, then projector and language model.

1. The encoder is trained to classify the number from each of its tokens; the classifier is discarded.
2. Stage 1 trains the projector alone, over the frozen base.
3. Stage 2 trains the linear layers of the language model, and the projector unless the settings keep it. Embeddings,
   head and norms keep the base's values.

A donor is trained only on questions about one input of its modality. Questions about several inputs are never trained
with media: they test the composition.

Paper: arXiv 2402.12750, section on donors (two stages; only the language model's linear layers adapt).
Differs: full linear layers instead of low-rank adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from mcompose.lab.batches import WordTable, collate
from mcompose.lab.decoupled import add_group, route_arguments
from mcompose.lab.fit import answer_loss, fit, tuned_weights
from mcompose.lab.media import DigitImages, draw
from mcompose.lab.questions import SINGLE_TASKS, Question, ask
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import NumbersSettings
from mcompose.lab.towers import Donor
from mcompose.modalities import PLACEHOLDERS

__all__ = ["Pool", "adopt_language_model", "make_pool", "pretrain_encoder", "single_accuracy", "train_donor"]

_CHUNK = 250


@dataclass(frozen=True)
class Pool:
    """Items of one modality, prepared for the encoder.

    Args:
        inputs: Inputs of the encoder by name; the first dimension is that of the items.
        numbers: Number that each item shows, (items,).
    """

    inputs: dict[str, torch.Tensor]
    numbers: np.ndarray

    def rows(self, index: np.ndarray | slice) -> dict[str, torch.Tensor]:
        """Returns the inputs of some items."""
        chosen = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        return {name: values[chosen] for name, values in self.inputs.items()}


def make_pool(donor: Donor, *, count: int, digits: DigitImages, split: str, generator: np.random.Generator) -> Pool:
    """Draws items, equally many of each number.

    Args:
        donor: Donor whose encoder they are prepared for.
        count: Number of items; training images include copies that are shifted by up to two pixels.
        digits: The images.
        split: "train" or "test".
        generator: Source of randomness.

    Returns:
        The items.
    """
    numbers = np.arange(count) % 10
    if donor.modality == "image":
        items = [_digit(digits, int(n), place=i // 10, split=split, generator=generator) for i, n in enumerate(numbers)]
    else:
        items = [draw(donor.modality, int(n), generator=generator) for n in numbers]
    return Pool(donor.prepare(items), numbers)


def _digit(digits: DigitImages, number: int, *, place: int, split: str, generator: np.random.Generator) -> np.ndarray:
    if split == "test":
        images = digits.test[number]
        return images[place % len(images)]
    images = digits.train[number]
    image = images[int(generator.integers(len(images)))]
    down, right = generator.integers(-2, 3, size=2)
    padded = np.pad(image, 2)
    return padded[2 + down : 18 + down, 2 + right : 18 + right]


def pretrain_encoder(
    donor: Donor,
    settings: NumbersSettings,
    *,
    seed: int,
    digits: DigitImages,
    progress: Callable[[float], None] | None = None,
) -> float:
    """Trains the encoder to classify the number.

    Args:
        donor: Donor whose encoder is trained in place.
        settings: The family's settings.
        seed: The family's seed.
        digits: The images.
        progress: Called with the finished share, 0 to 1.

    Returns:
        Accuracy of the classifier on held-out items; the classifier is discarded.
    """
    generator = generator_for(seed, "encoder", donor.modality)
    count = settings.pool * (2 if donor.modality == "image" else 1)
    pool = make_pool(donor, count=count, digits=digits, split="train", generator=generator)
    numbers = torch.from_numpy(pool.numbers)
    classifier = nn.Linear(donor.encode(pool.rows(slice(0, 1))).shape[-1], 10)
    encoder = getattr(donor.model.model, donor.tower)
    fitting = settings.encoder[donor.modality]

    def loss() -> torch.Tensor:
        index = generator.integers(count, size=fitting.batch)
        scores = classifier(donor.encode(pool.rows(index)))
        wanted = numbers[torch.from_numpy(index)]
        return F.cross_entropy(scores.flatten(0, 1), wanted.repeat_interleave(scores.shape[1]))

    fit([*encoder.parameters(), *classifier.parameters()], fitting, loss=loss, progress=progress)
    held_out = make_pool(donor, count=settings.checked, digits=digits, split="test", generator=generator)
    with torch.no_grad():
        answers = classifier(_encoded(donor, held_out)).mean(1).argmax(-1).numpy()
    return float((answers == held_out.numbers).mean())


def adopt_language_model(donor: Donor, base: LlamaForCausalLM) -> None:
    """Copies the base's weights into a donor's language model.

    The placeholder's row, the last of the vocabulary, becomes the mean of the others.

    Args:
        donor: Donor, changed in place.
        base: The base.
    """
    own: Any = donor.model
    weights = base.state_dict()
    with torch.no_grad():
        for name, value in own.model.language_model.state_dict().items():
            _fill(value, weights[f"model.{name}"])
        _fill(own.lm_head.weight, weights["lm_head.weight"])


def _fill(target: torch.Tensor, values: torch.Tensor) -> None:
    target[: len(values)] = values
    if len(target) > len(values):
        target[len(values) :] = values.mean(dim=0)


def train_donor(
    donor: Donor,
    settings: NumbersSettings,
    *,
    seed: int,
    digits: DigitImages,
    progress: Callable[[float], None] | None = None,
    decouple: bool = False,
) -> None:
    """Runs both stages.

    Args:
        donor: Donor with a trained encoder and the base's language model; trained in place.
        settings: The family's settings.
        seed: The family's seed.
        digits: The images.
        progress: Called with the finished share, 0 to 1.
        decouple: Whether in stage 2 tokens of the medium use linear layers of their own, trained together with those of
            the text (DAMC's donors). Items, questions and steps are exactly the same.
    """
    generator = generator_for(seed, "donor", donor.modality)
    pool = make_pool(donor, count=settings.pool, digits=digits, split="train", generator=generator)
    model: Any = donor.model
    model.requires_grad_(requires_grad=False)
    seen = _encoded(donor, pool)
    places = _by_number(pool.numbers)
    table = WordTable(donor.processor.tokenizer.get_vocab())
    share = settings.projector.steps / max(1, settings.projector.steps + settings.full.steps)
    projector = [p.requires_grad_() for p in model.model.multi_modal_projector.parameters()]

    def loss() -> torch.Tensor:
        questions = _questions(settings.projector.batch, generator)
        index = np.array([places[q.numbers[0]][int(generator.integers(len(places[0])))] for q in questions])
        ids, logits = _answer(donor, questions, seen[torch.from_numpy(index)], table=table)
        return answer_loss(logits, ids)

    def part(start: float, length: float) -> Callable[[float], None]:
        return lambda done: progress(start + length * done) if progress else None

    fit(projector, settings.projector, loss=loss, progress=part(0.0, share))
    if decouple:
        add_group(donor)
    linear = tuned_weights(model.model.language_model)
    for values in linear:
        values.requires_grad_()
    if settings.keep_projector:
        model.model.multi_modal_projector.requires_grad_(requires_grad=False)
        projector = []
    fit([*projector, *linear], settings.full, loss=loss, progress=part(share, 1 - share))
    model.requires_grad_().eval()


def single_accuracy(donor: Donor, *, seed: int, digits: DigitImages, count: int = 200) -> dict[str, float]:
    """Measures a donor on held-out items of its modality.

    Args:
        donor: The trained donor.
        seed: The family's seed.
        digits: The images.
        count: Number of items.

    Returns:
        Single task -> share of right answers.
    """
    generator = generator_for(seed, "single accuracy", donor.modality)
    pool = make_pool(donor, count=count, digits=digits, split="test", generator=generator)
    table = WordTable(donor.processor.tokenizer.get_vocab())
    accuracy = {}
    places = _by_number(pool.numbers)
    with torch.no_grad():
        seen = _encoded(donor, pool)
        for task in SINGLE_TASKS:
            questions = [ask(task, 1, generator=generator) for _ in range(count)]
            index = [places[q.numbers[0]][int(generator.integers(len(places[0])))] for q in questions]
            ids, logits = _answer(donor, questions, seen[torch.tensor(index)], table=table)
            accuracy[task] = float((logits[:, 0].argmax(-1) == ids[:, -2]).float().mean())
    return accuracy


def _questions(count: int, generator: np.random.Generator) -> list[Question]:
    tasks = generator.integers(len(SINGLE_TASKS), size=count)
    return [ask(SINGLE_TASKS[i], 1, generator=generator) for i in tasks]


def _by_number(numbers: np.ndarray) -> Mapping[int, np.ndarray]:
    return {number: np.flatnonzero(numbers == number) for number in range(10)}


def _encoded(donor: Donor, pool: Pool) -> torch.Tensor:
    with torch.no_grad():
        parts = [donor.encode(pool.rows(slice(start, start + _CHUNK))) for start in range(0, len(pool.numbers), _CHUNK)]
    return torch.cat(parts)


def _answer(
    donor: Donor, questions: list[Question], seen: torch.Tensor, *, table: WordTable
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the model from the encoder's tokens on; returns ids of prompts and answers, and logits of answer and end."""
    model: Any = donor.model
    place = PLACEHOLDERS[donor.modality]
    said = f"{donor.modality} {' '.join([place] * donor.tokens)}"
    batch = collate([f"{said} {q.text}" for q in questions], questions, table=table)
    ids = batch.input_ids[:, :-1]
    features = model.model.multi_modal_projector(seen)
    embeds = model.get_input_embeddings()(ids)
    shown = ids == table.ids[place]
    embeds = embeds.masked_scatter(shown.unsqueeze(-1).expand_as(embeds), features)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask[:, :-1], **route_arguments(donor, shown)
    )
    return batch.input_ids, model.lm_head(hidden.last_hidden_state[:, -2:])
