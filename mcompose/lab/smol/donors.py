"""The family ``smol``: trains the donors in LLaVA's two stages after an initialisation, and decoupled ones beside them.

0. The projector is fitted to the embeddings of the kinds' names, without running the language model.
1. The projector alone is trained, over the frozen base.
2. The linear layers of the language model are trained, in full and not as low-rank adapters (merging needs deltas), and
   the projector if the settings say so.

A decoupled donor starts from the same stage 1 and takes the same steps on the same questions. Encoders are frozen, so
their features are computed once. A donor is asked about one input of its modality and never about two.

Paper: LLaVA, arXiv 2304.08485 (two stages); DAMC, arXiv 2402.12750 (decoupled parameters).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mcompose.lab.decoupled import add_group, route_arguments
from mcompose.lab.fit import answer_loss, fit, tuned_weights
from mcompose.lab.questions import Question
from mcompose.lab.randomness import generator_for
from mcompose.lab.settings import FitSettings
from mcompose.lab.smol.media import Items
from mcompose.lab.smol.questions import KINDS, SINGLE_TASKS, ask
from mcompose.lab.smol.text import batch_of, fast
from mcompose.lab.towers import Donor
from mcompose.modalities import PLACEHOLDERS

__all__ = [
    "EncodedItems", "encode_items", "scale_projector", "single_accuracy", "train_language", "train_points",
    "train_projector", "train_reader",
]  # fmt: skip

_CHUNK: Final = 64
_SHARPNESS: Final = 10.0


@dataclass(frozen=True)
class EncodedItems:
    """Features of some items.

    Args:
        features: Output of the encoder, (items, tokens, width).
        places: Kind -> indices of its items.
    """

    features: torch.Tensor
    places: dict[int, np.ndarray]

    def pick(self, questions: list[Question], generator: np.random.Generator) -> torch.Tensor:
        """Picks an item of the right kind for each question; returns its features."""
        index = []
        for question in questions:
            own = self.places[question.numbers[0]]
            index.append(int(own[int(generator.integers(len(own)))]))
        return self.features[torch.tensor(index)]


def encode_items(donor: Donor, items: Items) -> EncodedItems:
    """Encodes items with a donor's frozen encoder."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(items.values), _CHUNK):
            parts.append(donor.encode(donor.prepare(items.values[start : start + _CHUNK])).float())
    return EncodedItems(torch.cat(parts), items.places())


def train_points(
    donor: Donor, items: Items, fitting: FitSettings, *, seed: int, progress: Callable[[float], None] | None = None
) -> None:
    """Trains the point encoder to classify the kind from each of its tokens; the classifier is discarded.

    Args:
        donor: Donor whose encoder is trained in place.
        items: Altered copies of training clouds.
        fitting: Steps, learning rate and batch size.
        seed: The family's seed.
        progress: Called with the finished share, 0 to 1.
    """
    generator = generator_for(seed, "smol encoder", donor.modality)
    encoder = getattr(donor.model.model, donor.tower)
    inputs, kinds, places = donor.prepare(items.values), torch.from_numpy(items.kinds), items.places()
    width = donor.encode({name: values[:1] for name, values in inputs.items()}).shape[-1]
    classifier = nn.Linear(width, len(KINDS))

    def loss() -> torch.Tensor:
        drawn = generator.integers(len(KINDS), size=fitting.batch)
        index = torch.tensor([int(places[int(k)][int(generator.integers(len(places[int(k)])))]) for k in drawn])
        tokens = donor.encode({name: values[index] for name, values in inputs.items()})
        scores = classifier(F.dropout(tokens, 0.2))
        return F.cross_entropy(scores.flatten(0, 1), kinds[index].repeat_interleave(scores.shape[1]))

    fit([*encoder.parameters(), *classifier.parameters()], fitting, loss=loss, progress=progress)


def train_projector(
    donor: Donor,
    seen: EncodedItems,
    fitting: FitSettings,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Runs stage 1: trains the projector.

    Args:
        donor: Donor with the base's language model; its projector is trained in place.
        seen: Features of the training items.
        fitting: Steps, learning rate and batch size.
        seed: The family's seed.
        progress: Called with the finished share, 0 to 1.
    """
    model: Any = donor.model
    model.requires_grad_(requires_grad=False)
    projector = [values.requires_grad_() for values in model.model.multi_modal_projector.parameters()]
    loss = _loss(donor, seen, fitting, generator=generator_for(seed, "smol donor", donor.modality, "1"))
    fit(projector, fitting, loss=loss, progress=progress)


@torch.no_grad()
def scale_projector(projector: Any, features: torch.Tensor, *, like: torch.Tensor) -> None:
    """Scales a fresh projector to its inputs and to the embeddings that its outputs join.

    Encoders differ in scale, and some channels of a ViT are a hundred times as large as others; a short stage 1 would
    be spent on learning that.

    Args:
        projector: Two linear layers, changed in place: afterwards the first sees features of mean 0 and standard
            deviation 1, and the outputs are as large as embeddings.
        features: Output of the encoder, (items, tokens, width).
        like: Embeddings of words, (words, width).
    """
    flat = features.flatten(0, 1)
    middle, spread = flat.mean(0), flat.std(0).clamp_min(1e-4)
    first, last = projector.linear_1, projector.linear_2
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight /= spread
    first.bias.copy_(-(first.weight @ middle))
    last.bias.zero_()
    last.weight *= like.std() / projector(features[:_CHUNK]).std()


def train_reader(donor: Donor, seen: EncodedItems, fitting: FitSettings, *, seed: int) -> None:
    """Trains the projector to the embeddings of the kinds' names, without the language model: seconds, not minutes.

    Each token is compared with these embeddings. The language model can roughly read the result; the stages improve it.

    Args:
        donor: Donor whose projector is trained in place.
        seen: Features of the training items.
        fitting: Steps, learning rate and batch size.
        seed: The family's seed.
    """
    model: Any = donor.model
    projector = model.model.multi_modal_projector
    embeddings = model.get_input_embeddings().weight.detach()
    scale_projector(projector, seen.features, like=embeddings)
    names = donor.processor.tokenizer([f" {kind}" for kind in KINDS], add_special_tokens=False)["input_ids"]
    words = embeddings[torch.tensor([name[0] for name in names])]
    words = F.normalize(words - words.mean(0), dim=-1)
    generator = generator_for(seed, "smol reader", donor.modality)
    projector.requires_grad_()

    def loss() -> torch.Tensor:
        kinds = generator.integers(len(KINDS), size=fitting.batch)
        index = [int(seen.places[int(k)][int(generator.integers(len(seen.places[int(k)])))]) for k in kinds]
        tokens = F.normalize(projector(F.dropout(seen.features[torch.tensor(index)], 0.2)), dim=-1)
        scores = _SHARPNESS * tokens @ words.T
        return F.cross_entropy(scores.flatten(0, 1), torch.from_numpy(kinds).repeat_interleave(scores.shape[1]))

    fit(projector.parameters(), fitting, loss=loss)


def train_language(
    donor: Donor,
    seen: EncodedItems,
    fitting: FitSettings,
    *,
    seed: int,
    decouple: bool = False,
    train_projector: bool = False,
) -> None:
    """Runs stage 2: trains the linear layers of the language model.

    Args:
        donor: Donor after stage 1; trained in place.
        seen: Features of the training items.
        fitting: Steps, learning rate and batch size.
        seed: The family's seed.
        decouple: Whether tokens of the medium use linear layers of their own, trained together with those of the text.
        train_projector: Whether the projector is trained, too.
    """
    model: Any = donor.model
    model.requires_grad_(requires_grad=False)
    if decouple:
        add_group(donor)
    trained = tuned_weights(model.model.language_model)
    if train_projector:
        trained += model.model.multi_modal_projector.parameters()
    for values in trained:
        values.requires_grad_()
    loss = _loss(donor, seen, fitting, generator=generator_for(seed, "smol donor", donor.modality, "2"))
    fit(trained, fitting, loss=loss, fused=True)
    model.requires_grad_(requires_grad=False).eval()


def single_accuracy(donor: Donor, seen: EncodedItems, *, seed: int, count: int) -> dict[str, float]:
    """Measures a donor on held-out items.

    Args:
        donor: The trained donor.
        seen: Features of the held-out items.
        seed: The family's seed.
        count: Questions of each task.

    Returns:
        Single task -> share of right answers.
    """
    generator = generator_for(seed, "smol single accuracy", donor.modality)
    accuracy = {}
    for task in SINGLE_TASKS:
        questions = [ask(task, (donor.modality,), generator=generator) for _ in range(count)]
        with torch.no_grad(), fast():
            ids, logits = _answer(donor, questions, seen.pick(questions, generator))
        accuracy[task] = float((logits[:, 0].argmax(-1) == ids[:, -2]).float().mean())
    return accuracy


def _loss(
    donor: Donor, seen: EncodedItems, fitting: FitSettings, *, generator: np.random.Generator
) -> Callable[..., Any]:
    def loss() -> torch.Tensor:
        tasks = generator.integers(len(SINGLE_TASKS), size=fitting.batch)
        questions = [ask(SINGLE_TASKS[i], (donor.modality,), generator=generator) for i in tasks]
        features = seen.pick(questions, generator)
        with fast():
            ids, logits = _answer(donor, questions, features)
        return answer_loss(logits.float(), ids)

    return loss


def _answer(donor: Donor, questions: list[Question], features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the model from the encoder's tokens on; returns ids of prompts and answers, and logits of answer and end."""
    model: Any = donor.model
    tokenizer, place = donor.processor.tokenizer, PLACEHOLDERS[donor.modality]
    said = f"{donor.modality}: {place * donor.tokens}"
    batch = batch_of([f"{said} {q.text}" for q in questions], [q.answer for q in questions], tokenizer=tokenizer)
    ids = batch.input_ids[:, :-1]
    embeds = model.get_input_embeddings()(ids)
    shown = ids == tokenizer.convert_tokens_to_ids(place)
    projected = model.model.multi_modal_projector(features).to(embeds.dtype)
    embeds = embeds.masked_scatter(shown.unsqueeze(-1).expand_as(embeds), projected)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask[:, :-1], **route_arguments(donor, shown)
    )
    return batch.input_ids, model.lm_head(hidden.last_hidden_state[:, -2:])
