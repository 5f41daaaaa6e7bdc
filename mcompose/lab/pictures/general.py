"""The general model: a language model that can look things up, with an encoder that sees small pictures.

It is trained on three kinds of rows, all with the same questions:

- pictures as the general encoder sees them;
- labels as marks: one vector for each thing that can be read, the sum of its words' embeddings, as an ideal encoder
  would give it. From these rows the model learns to find and to write what a question asks for. Here one attention head
  of the second layer is also supervised: it must look at the mark that the next word is read from. Without this, a tiny
  model learns to look things up far too slowly. The digits' vectors of the marks are discarded.
- labels as words.

So it answers general questions. For the others it knows the form of the answer but cannot see the content, which an
expert must supply. It is never trained with an expert's tokens.

In the family ``pictures-reading`` the general encoder can read, and that head is supervised in the rows with pictures,
too: this general model uses what its encoder resolves, as large ones do.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
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
from mcompose.lab.pictures.picture import Mark, Picture
from mcompose.lab.pictures.pretrain import general_shares
from mcompose.lab.pictures.questions import LISTS, TASKS, Question, as_text, questions_of
from mcompose.lab.pictures.settings import PicturesSettings
from mcompose.lab.pictures.words import CHAT_TEMPLATE, PLACEHOLDER, SPECIAL, VOCABULARY
from mcompose.lab.randomness import generator_for

__all__ = [
    "GeneralModel",
    "MarkTable",
    "answer_accuracy",
    "build_general_model",
    "make_tokenizer",
    "train_general_model",
]

_ASKED = 1  # questions per row: with several, the model would first have to learn which one to answer
_FIRST = ("marks", "marks", "marks", "words")  # kinds of rows of a step, in turn: it learns to look things up before
_THEN = ("picture", "marks", "picture", "picture")  # it sees pictures, as large language models do
_GENERAL_SHARE = {"marks": 0.0, "words": 0.3}
_CHUNK = 100
_LOOKING_LAYER = 1
_SPREAD = 0.09  # standard deviation of fresh weights: about one over the square root of the width
_SHORT_SHARE = 0.4  # of the steps, at the beginning, have no questions about lists: lists need look-ups


@dataclass(frozen=True)
class GeneralModel:
    """The general model before it is written to disk.

    Args:
        model: An ordinary LLaVA.
        processor: Processor of the model.
        tokens: Placeholder tokens per picture.
        marks: Table that replaces an ideal encoder while the language model is trained; not part of the checkpoint.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    tokens: int
    marks: MarkTable


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes the word-level tokenizer of the pictures, with placeholder and chat template."""
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
    """Builds the model around a trained general encoder.

    Args:
        settings: The family's settings.
        encoder: The general encoder; its weights are copied.

    Returns:
        The model. All weights but the encoder's come from torch's global generator: call this inside
        ``deterministic_torch``.
    """
    tokenizer = make_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        initializer_range=_SPREAD, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    tokens = (encoder.side // encoder.patch) ** 2
    vision: Any = encoder.model.config
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.get_vocab()[PLACEHOLDER],
        image_seq_length=tokens, vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(config)
    looking: Any = model.model.language_model.layers[min(_LOOKING_LAYER, settings.layers - 1)].self_attn
    with torch.no_grad():  # at first each position attends to similar ones
        looking.k_proj.weight.copy_(looking.q_proj.weight)
    model.model.vision_tower.load_state_dict(encoder.model.state_dict())
    model.model.vision_tower.requires_grad_(requires_grad=False)
    processor = LlavaProcessor(
        image_processor=encoder.processor, tokenizer=tokenizer, patch_size=encoder.patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return GeneralModel(model, processor, tokens, MarkTable(model.get_input_embeddings(), tokenizer.get_vocab()))


class MarkTable(nn.Module):
    """Vectors of marks, as an ideal encoder would give them.

    A mark's vector is the sum of its words' embeddings, except for digits: their position matters, so tens and units
    have vectors of their own.

    Args:
        embeddings: Word embeddings of the language model.
        words: Word -> id.
    """

    def __init__(self, embeddings: nn.Embedding, words: Mapping[str, int]) -> None:
        super().__init__()
        self._embeddings = [embeddings]  # in a list, so that it is not a submodule
        self._words = words
        self.digits = nn.Embedding(20, embeddings.embedding_dim)
        nn.init.normal_(self.digits.weight, std=_SPREAD)

    def forward(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Returns the vectors of all marks of all pictures, one picture after the other, (marks, width)."""
        places = [self._places(mark) for picture in pictures for mark in picture.marks]
        starts = np.cumsum([0, *(len(own) for own in places[:-1])])
        table = torch.cat([self._embeddings[0].weight, self.digits.weight])
        flat = torch.tensor([place for own in places for place in own])
        return F.embedding_bag(flat, table, torch.from_numpy(starts), mode="sum")

    def _places(self, mark: Mark) -> list[int]:
        behind = self._embeddings[0].num_embeddings
        own = {"tens": behind, "units": behind + 10}
        return [own[field] + int(word) if field in own else self._words[word] for field, word in mark.fields.items()]


def train_general_model(
    general: GeneralModel,
    pictures: Sequence[Picture],
    seen: torch.Tensor,
    settings: PicturesSettings,
    *,
    seed: int,
    token_marks: Sequence[np.ndarray] = (),
) -> None:
    """Trains language model and projector.

    Args:
        general: The model, trained in place and left in evaluation mode.
        pictures: Pictures of all domains.
        seen: Their tokens from the general encoder, (pictures, tokens, width).
        settings: The family's settings.
        seed: The family's seed.
        token_marks: For each picture, the mark that each token belongs to, -1 for none, (tokens,), to supervise
            attention in rows with pictures; empty to supervise it in rows with marks only.
    """
    generator = generator_for(seed, "general model")
    words = general.processor.tokenizer.get_vocab()
    model: Any = general.model.train()
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    asked = [questions_of(picture) for picture in pictures]
    short = [tuple(q for q in own if q.task not in LISTS) for own in asked]
    steps = itertools.count()
    general_share = {**_GENERAL_SHARE, "picture": settings.base_general}
    shares = {way: general_shares(pictures, general=share) for way, share in general_share.items()}

    def loss() -> torch.Tensor:
        step = next(steps)
        way = (_FIRST if step < settings.base_blind * settings.base.steps else _THEN)[step % 4]
        index = generator.choice(len(pictures), size=settings.base.batch, p=shares[way])
        held = short if step < _SHORT_SHARE * settings.base.steps else asked
        rows, looks = [], []
        for i in index:
            chosen = [held[i][j] for j in generator.permutation(len(held[i]))[:_ASKED]]
            rows.append(_row(_opening(general, pictures[i], way), chosen, words))
            looks.append(
                _looks_of(chosen, pictures[i], way, general.tokens, token_marks[i] if len(token_marks) else None)
            )
        ids, labels = _collated(rows)
        features = None
        if way == "picture":
            features = model.model.multi_modal_projector(seen[torch.from_numpy(index)]).flatten(0, 1)
        elif way == "marks":
            features = general.marks([pictures[i] for i in index])
        logits, attentions = _forward(general, ids, features)
        value = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return value + _looked(attentions, looks) if any(looks) else value

    model.set_attn_implementation("eager")  # the only one that returns attention weights
    fit([*trained, *general.marks.parameters()], settings.base, loss=loss)
    model.set_attn_implementation("sdpa")
    general.model.requires_grad_().eval()


@torch.no_grad()
def answer_accuracy(
    general: GeneralModel, pictures: Sequence[Picture], *, way: str, seed: int, seen: torch.Tensor | None = None
) -> dict[str, float]:
    """Measures the model on held-out pictures.

    Args:
        general: The trained model.
        pictures: The pictures.
        way: ``picture``, or ``words`` or ``marks``: the label replaces the picture, which is the upper limit of any
            encoder.
        seed: Seed that chooses the questions.
        seen: Tokens of the pictures from the general encoder, for ``picture``.

    Returns:
        Task -> share of questions whose whole answer is right, word for word.
    """
    generator = generator_for(seed, "answer_accuracy")
    model: Any = general.model
    words = general.processor.tokenizer.get_vocab()
    pairs = [
        (i, question)
        for i, picture in enumerate(pictures)
        for question in _one_a_task(picture, generator)
        if way != "marks" or picture.marks
    ]
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK]
        ids, labels = _collated([_row(_opening(general, pictures[i], way), [question], words) for i, question in some])
        features = None
        if seen is not None:
            features = model.model.multi_modal_projector(seen[[i for i, _ in some]]).flatten(0, 1)
        elif way == "marks":
            features = general.marks([pictures[i] for i, _ in some])
        wanted = labels[:, 1:]
        best = _forward(general, ids, features)[0][:, :-1].argmax(-1)
        fine = ((best == wanted) | (wanted == -100)).all(dim=1).tolist()
        for (_, question), verdict in zip(some, fine, strict=True):
            right[question.task].append(verdict)
    return {task: round(float(np.mean(found)), 3) for task, found in right.items() if found}


def _opening(general: GeneralModel, picture: Picture, way: str) -> list[str]:
    """Returns the words at the start of a row."""
    if way == "words":
        return as_text(picture).split()
    return [PLACEHOLDER] * (general.tokens if way == "picture" else len(picture.marks))


def _one_a_task(picture: Picture, generator: np.random.Generator) -> list[Question]:
    held: dict[str, list[Question]] = {}
    for question in questions_of(picture):
        held.setdefault(question.task, []).append(question)
    return [found[int(generator.integers(len(found)))] for found in held.values()]


def _row(opening: Sequence[str], questions: Sequence[Question], words: dict[str, int]) -> tuple[list[int], list[int]]:
    """Makes ids and labels of a row: the opening, then questions and answers in turn."""
    ids = [words["<bos>"], *(words[word] for word in opening)]
    labels = [-100] * len(ids)
    for question in questions:
        prompt = [words[word] for word in question.text.split()]
        answer = [*(words[word] for word in question.answer.split()), words["<eos>"]]
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    return ids, labels


def _collated(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows on the right: earlier positions never attend to the padding, and it has no labels."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    labels = torch.tensor([[*labels, *[-100] * (length - len(labels))] for _, labels in rows])
    return ids, labels


def _looks(questions: Sequence[Question], *, start: int) -> list[tuple[int, int]]:
    """Returns positions of a row with marks, each with the position that its next word is read from."""
    found = []
    for question in questions:
        answer = start + len(question.text.split())
        found += [(answer + i - 1, 1 + mark) for i, mark in enumerate(question.sources) if mark >= 0]
        start = answer + len(question.answer.split()) + 1
    return found


def _looks_of(
    questions: Sequence[Question], picture: Picture, way: str, tokens: int, home: np.ndarray | None
) -> list[tuple[int, Sequence[int]]]:
    """Returns positions of any row, each with the positions that its next word is read from."""
    if way == "marks":
        return [(place, (mark,)) for place, mark in _looks(questions, start=1 + len(picture.marks))]
    if way != "picture" or home is None:
        return []
    held = ((place, 1 + np.flatnonzero(home == mark - 1)) for place, mark in _looks(questions, start=1 + tokens))
    return [(place, patches.tolist()) for place, patches in held if len(patches)]


def _looked(attentions: torch.Tensor, looks: Sequence[Sequence[tuple[int, Sequence[int]]]]) -> torch.Tensor:
    """Computes the negative logarithm of one head's attention to the source of the next word, mean over positions."""
    pairs = [(row, *pair) for row, found in enumerate(looks) for pair in found]
    places = torch.tensor([(row, place, key, i) for i, (row, place, keys) in enumerate(pairs) for key in keys])
    seen = attentions[places[:, 0], places[:, 1], places[:, 2]]
    return -torch.log(torch.zeros(len(pairs)).index_add(0, places[:, 3], seen) + 1e-6).mean()


def _forward(
    general: GeneralModel, ids: torch.Tensor, features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits, and the attention of the supervised layer's first head; features replace the placeholders."""
    model: Any = general.model
    embeds = model.get_input_embeddings()(ids)
    if features is not None:
        shown = ids == model.config.image_token_id
        embeds = embeds.masked_scatter(shown.unsqueeze(-1).expand_as(embeds), features)
    supervised = model.training
    hidden = model.model.language_model(inputs_embeds=embeds, output_attentions=supervised)
    attentions = hidden.attentions[min(_LOOKING_LAYER, len(hidden.attentions) - 1)][:, 0] if supervised else embeds[:0]
    return model.lm_head(hidden.last_hidden_state), attentions
