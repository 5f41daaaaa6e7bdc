"""The general model: a language model that can look things up, behind an encoder that sees everything small.

It is trained on two kinds of rows in turn: labels as text with questions, from which it learns to find and to write
what a question asks for; and pictures at the general resolution with the same questions. So it answers general
questions, and of the others knows the form but cannot see the answer: what an expert has to bring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mcompose.lab.fit import fit
from mcompose.lab.pictures.encoders import Encoder
from mcompose.lab.pictures.picture import Picture
from mcompose.lab.pictures.pretrain import general_shares
from mcompose.lab.pictures.questions import TASKS, Question, as_text, questions_of
from mcompose.lab.pictures.settings import PicturesSettings
from mcompose.lab.pictures.words import CHAT_TEMPLATE, PLACEHOLDER, SPECIAL, VOCABULARY
from mcompose.lab.randomness import generator_for

__all__ = ["GeneralModel", "answered", "build_general_model", "make_tokenizer", "train_general_model"]

_ASKED = 8  # questions a row, at most
_CHUNK = 100


@dataclass(frozen=True)
class GeneralModel:
    """The general model under construction.

    Args:
        model: An ordinary LLaVA.
        processor: Its processor.
        tokens: Placeholder tokens a picture.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    tokens: int


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the pictures, placeholder and chat template included."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415 - import cost

    words = {word: index for index, word in enumerate(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[3]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", words["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0],
        unk_token=SPECIAL[3], padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
    return tokenizer


def build_general_model(settings: PicturesSettings, encoder: Encoder) -> GeneralModel:
    """Makes the model around a trained general encoder.

    Args:
        settings: The family's settings.
        encoder: The general encoder; its weights are copied.

    Returns:
        The model; all but its encoder is fresh, from torch's global generator: call inside a fork of it.
    """
    tokenizer = make_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        initializer_range=0.05, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    tokens = (encoder.side // encoder.patch) ** 2
    vision: Any = encoder.model.config
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.get_vocab()[PLACEHOLDER],
        image_seq_length=tokens, vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.model.state_dict())
    model.model.vision_tower.requires_grad_(requires_grad=False)
    processor = LlavaProcessor(
        image_processor=encoder.processor, tokenizer=tokenizer, patch_size=encoder.patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return GeneralModel(model, processor, tokens)


def train_general_model(
    general: GeneralModel,
    pictures: Sequence[Picture],
    seen: torch.Tensor,
    settings: PicturesSettings,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Trains language model and projector.

    Args:
        general: Trained in place; left in evaluation mode.
        pictures: Of all domains.
        seen: Their patches as the general encoder gives them, (pictures, tokens, width).
        settings: The family's settings.
        seed: The family's seed.
        progress: Told the share that is done.
    """
    generator = generator_for(seed, "general model")
    words = general.processor.tokenizer.get_vocab()
    model: Any = general.model.train()
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    asked = [questions_of(picture) for picture in pictures]
    shares = [general_shares(pictures, general=share) for share in (0.1, 0.5)]  # of text rows, of pictures
    turn = [0]

    def loss() -> torch.Tensor:
        shown = turn[0] % 2 == 1
        index = generator.choice(len(pictures), size=settings.base.batch, p=shares[shown])
        turn[0] += 1
        rows = []
        for i in index:
            chosen = generator.permutation(len(asked[i]))[:_ASKED]
            rows.append(_row(pictures[i], [asked[i][j] for j in chosen], words, general.tokens if shown else 0))
        ids, labels = _collated(rows)
        logits = _logits(general, ids, seen[torch.from_numpy(index)] if shown else None)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    fit(trained, settings.base, loss=loss, progress=progress)
    general.model.requires_grad_().eval()


@torch.no_grad()
def answered(
    general: GeneralModel, pictures: Sequence[Picture], seen: torch.Tensor | None, *, seed: int
) -> dict[str, float]:
    """What the model makes of held-out pictures.

    Args:
        general: The trained model.
        pictures: The pictures.
        seen: Their patches; None to tell them as text.
        seed: Chooses the questions.

    Returns:
        Task -> share of questions whose whole answer is right, word for word.
    """
    generator = generator_for(seed, "answered")
    words = general.processor.tokenizer.get_vocab()
    pairs = [
        (i, picture, question) for i, picture in enumerate(pictures) for question in _one_a_task(picture, generator)
    ]
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK]
        tokens = general.tokens if seen is not None else 0
        ids, labels = _collated([_row(picture, [question], words, tokens) for _, picture, question in some])
        logits = _logits(general, ids, None if seen is None else seen[[i for i, _, _ in some]])
        wanted = labels[:, 1:]
        fine = ((logits[:, :-1].argmax(-1) == wanted) | (wanted == -100)).all(dim=1).tolist()
        for (_, _, question), verdict in zip(some, fine, strict=True):
            right[question.task].append(verdict)
    return {task: round(float(np.mean(found)), 3) for task, found in right.items() if found}


def _one_a_task(picture: Picture, generator: np.random.Generator) -> list[Question]:
    held: dict[str, list[Question]] = {}
    for question in questions_of(picture):
        held.setdefault(question.task, []).append(question)
    return [found[int(generator.integers(len(found)))] for found in held.values()]


def _row(
    picture: Picture, questions: Sequence[Question], words: dict[str, int], tokens: int
) -> tuple[list[int], list[int]]:
    """Ids and labels: picture or its text, then questions and answers in turn."""
    start = [PLACEHOLDER] * tokens if tokens else as_text(picture).split()
    ids = [words["<bos>"], *(words[word] for word in start)]
    labels = [-100] * len(ids)
    for question in questions:
        prompt = [words[word] for word in question.text.split()]
        answer = [*(words[word] for word in question.answer.split()), words["<eos>"]]
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    return ids, labels


def _collated(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the right: what stands before never sees it, and what stands there has no label."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    labels = torch.tensor([[*labels, *[-100] * (length - len(labels))] for _, labels in rows])
    return ids, labels


def _logits(general: GeneralModel, ids: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """The model's forward from its encoder's tokens on."""
    model: Any = general.model
    embeds = model.get_input_embeddings()(ids)
    if seen is not None:
        shown = ids == model.config.image_token_id
        features = model.model.multi_modal_projector(seen)
        embeds = embeds.masked_scatter(shown.unsqueeze(-1).expand_as(embeds), features)
    hidden = model.model.language_model(inputs_embeds=embeds)
    return model.lm_head(hidden.last_hidden_state)
