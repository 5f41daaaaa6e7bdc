"""The general model: a language model that can look things up, behind an encoder that sees everything small.

It is trained on three kinds of rows, all with the same questions:

- pictures as the general encoder sees them;
- labels told in marks: one vector for each thing that can be read, the sum of its words, as an ideal encoder would
  give it. From these it learns to find and to write what a question asks for. In these rows one head of the second
  layer is also told which mark the next word is read from: without it, looking up takes a tiny model far longer than a
  family may take. The digits' vectors of the marks are thrown away.
- labels told in words.

So it answers general questions, and of the others knows the form but cannot see the answer: what an expert has to
bring. No expert's token is ever shown to it.

In the family ``pictures-reading`` the general encoder reads, and the rows with pictures tell that head too where the
next word stands: this general model sees what its encoder resolves, as large ones do.
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

__all__ = ["GeneralModel", "MarkTable", "answered", "build_general_model", "make_tokenizer", "train_general_model"]

_ASKED = 1  # questions a row: several would have the model learn first which of them is asked
_FIRST = ("marks", "marks", "marks", "words")  # of the rows of one step, in turn: it learns to look things up before
_THEN = ("picture", "marks", "picture", "picture")  # it sees pictures, as large language models do
_GENERAL_SHARE = {"marks": 0.0, "words": 0.3}
_CHUNK = 100
_LOOKING_LAYER = 1
_SPREAD = 0.09  # of fresh weights: about one over the root of the width
_SHORT_SHARE = 0.4  # of the steps ask for single things only, before any list: lists come from look-ups


@dataclass(frozen=True)
class GeneralModel:
    """The general model under construction.

    Args:
        model: An ordinary LLaVA.
        processor: Its processor.
        tokens: Placeholder tokens a picture.
        marks: Stands for an ideal encoder while the language model is trained; not part of the checkpoint.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    tokens: int
    marks: MarkTable


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the word-level tokenizer of the pictures, placeholder and chat template included."""
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
    with torch.no_grad():  # it starts by looking at what is like itself
        looking.k_proj.weight.copy_(looking.q_proj.weight)
    model.model.vision_tower.load_state_dict(encoder.model.state_dict())
    model.model.vision_tower.requires_grad_(requires_grad=False)
    processor = LlavaProcessor(
        image_processor=encoder.processor, tokenizer=tokenizer, patch_size=encoder.patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return GeneralModel(model, processor, tokens, MarkTable(model.get_input_embeddings(), tokenizer.get_vocab()))


class MarkTable(nn.Module):
    """Marks as vectors: what an ideal encoder would bring.

    A mark is the sum of its words as the language model knows them, but for digits, whose place matters and which have
    vectors of their own.

    Args:
        embeddings: The language model's, of all words.
        words: Word to id.
    """

    def __init__(self, embeddings: nn.Embedding, words: Mapping[str, int]) -> None:
        super().__init__()
        self._embeddings = [embeddings]  # in a list: not a part of this module
        self._words = words
        self.digits = nn.Embedding(20, embeddings.embedding_dim)
        nn.init.normal_(self.digits.weight, std=_SPREAD)

    def forward(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Vectors of all marks of all pictures, one after the other, (marks, width)."""
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
    homes: Sequence[np.ndarray] = (),
) -> None:
    """Trains language model and projector.

    Args:
        general: Trained in place; left in evaluation mode.
        pictures: Pictures of all domains.
        seen: Their patches as the general encoder gives them, (pictures, tokens, width).
        settings: The family's settings.
        seed: The family's seed.
        homes: Of each picture, the mark that each patch belongs to, -1 for none, (tokens,): it is told where to look
            in pictures too; empty for in marks only.
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
            looks.append(_looks_of(chosen, pictures[i], way, general.tokens, homes[i] if len(homes) else None))
        ids, labels = _collated(rows)
        features = None
        if way == "picture":
            features = model.model.multi_modal_projector(seen[torch.from_numpy(index)]).flatten(0, 1)
        elif way == "marks":
            features = general.marks([pictures[i] for i in index])
        logits, attentions = _forward(general, ids, features)
        value = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return value + _looked(attentions, looks) if any(looks) else value

    model.set_attn_implementation("eager")  # only that tells where it looks
    fit([*trained, *general.marks.parameters()], settings.base, loss=loss)
    model.set_attn_implementation("sdpa")
    general.model.requires_grad_().eval()


@torch.no_grad()
def answered(
    general: GeneralModel, pictures: Sequence[Picture], *, way: str, seed: int, seen: torch.Tensor | None = None
) -> dict[str, float]:
    """Returns what the model makes of held-out pictures.

    Args:
        general: The trained model.
        pictures: The pictures.
        way: ``picture``; ``words`` or ``marks``: the label is told instead, which is the ceiling of any encoder.
        seed: Chooses the questions.
        seen: The pictures' patches, for ``picture``.

    Returns:
        Task -> share of questions whose whole answer is right, word for word.
    """
    generator = generator_for(seed, "answered")
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
    """Returns the words that a row begins with."""
    if way == "words":
        return as_text(picture).split()
    return [PLACEHOLDER] * (general.tokens if way == "picture" else len(picture.marks))


def _one_a_task(picture: Picture, generator: np.random.Generator) -> list[Question]:
    held: dict[str, list[Question]] = {}
    for question in questions_of(picture):
        held.setdefault(question.task, []).append(question)
    return [found[int(generator.integers(len(found)))] for found in held.values()]


def _row(opening: Sequence[str], questions: Sequence[Question], words: dict[str, int]) -> tuple[list[int], list[int]]:
    """Ids and labels: the opening, then questions and answers in turn."""
    ids = [words["<bos>"], *(words[word] for word in opening)]
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


def _looks(questions: Sequence[Question], *, start: int) -> list[tuple[int, int]]:
    """Places of a row told in marks, each with the place that its next word is read from."""
    found = []
    for question in questions:
        answer = start + len(question.text.split())
        found += [(answer + i - 1, 1 + mark) for i, mark in enumerate(question.sources) if mark >= 0]
        start = answer + len(question.answer.split()) + 1
    return found


def _looks_of(
    questions: Sequence[Question], picture: Picture, way: str, tokens: int, home: np.ndarray | None
) -> list[tuple[int, Sequence[int]]]:
    """Places of any row, each with the places that its next word is read from."""
    if way == "marks":
        return [(place, (mark,)) for place, mark in _looks(questions, start=1 + len(picture.marks))]
    if way != "picture" or home is None:
        return []
    held = ((place, 1 + np.flatnonzero(home == mark - 1)) for place, mark in _looks(questions, start=1 + tokens))
    return [(place, patches.tolist()) for place, patches in held if len(patches)]


def _looked(attentions: torch.Tensor, looks: Sequence[Sequence[tuple[int, Sequence[int]]]]) -> torch.Tensor:
    """Minus the logarithm of how much one head looks where the next word stands, mean over places."""
    pairs = [(row, *pair) for row, found in enumerate(looks) for pair in found]
    places = torch.tensor([(row, place, key, i) for i, (row, place, keys) in enumerate(pairs) for key in keys])
    seen = attentions[places[:, 0], places[:, 1], places[:, 2]]
    return -torch.log(torch.zeros(len(pairs)).index_add(0, places[:, 3], seen) + 1e-6).mean()


def _forward(
    general: GeneralModel, ids: torch.Tensor, features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and where the first head of the looking layer looks; the features stand where the placeholders are."""
    model: Any = general.model
    embeds = model.get_input_embeddings()(ids)
    if features is not None:
        shown = ids == model.config.image_token_id
        embeds = embeds.masked_scatter(shown.unsqueeze(-1).expand_as(embeds), features)
    told = model.training
    hidden = model.model.language_model(inputs_embeds=embeds, output_attentions=told)
    attentions = hidden.attentions[min(_LOOKING_LAYER, len(hidden.attentions) - 1)][:, 0] if told else embeds[:0]
    return model.lm_head(hidden.last_hidden_state), attentions
