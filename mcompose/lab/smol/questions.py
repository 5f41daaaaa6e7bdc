"""The family ``smol``: questions about objects, with their wording and answers.

The shared concept is a kind of object, such as a chair. It is shown as a rendered picture, as its spoken name, as a
cloud of points, or as text. A question holds its objects and does not depend on media; the same question is asked with
text and with media. The attributes of a kind are set here: they are a convention of this family, which the base learns
from text, and not facts about the world.

Every answer is one token of SmolLM2's vocabulary. No attribute's set is inside another's, so none implies another.

Paper: MCUB, arXiv 2402.12750 (the commonality question, with one right option of four). Differs: the answer is the
option itself. Answering with its letter is a further step, which a model of this size is slow to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mcompose.lab.questions import Question
from mcompose.modalities import MODALITIES as ALL_MODALITIES

__all__ = [
    "ATTRIBUTES", "KINDS", "MODALITIES", "PAIR_TASKS", "SINGLE_TASKS", "ask", "describe_objects",
    "objects_of", "some_labels", "text_question",
]  # fmt: skip

MODALITIES: Final = tuple(modality for modality in ALL_MODALITIES if modality != "video")
"""Modalities of this family; the objects do not move, so there are no videos."""
KINDS: Final = (
    "bottle", "cabinet", "car", "chair", "couch", "door", "lamp", "person", "plug", "table", "tree", "window",
)  # fmt: skip
ATTRIBUTES: Final[dict[str, frozenset[str]]] = {
    "furniture": frozenset({"cabinet", "chair", "couch", "lamp", "table"}),
    "glass": frozenset({"bottle", "car", "lamp", "window"}),
    "opens": frozenset({"bottle", "cabinet", "car", "door", "window"}),
    "legs": frozenset({"chair", "couch", "person", "table"}),
    "electric": frozenset({"car", "lamp", "plug"}),
    "wooden": frozenset({"cabinet", "chair", "door", "table", "tree"}),
    "wall": frozenset({"door", "lamp", "plug", "window"}),
    "outdoors": frozenset({"car", "person", "tree"}),
}
SINGLE_TASKS: Final = ("name", "fact", "choice")
PAIR_TASKS: Final = ("same", "which")

_OPTIONS: Final = 4
_LABELS: Final = (*MODALITIES, "text")
_BEFORE: Final = ("", "a", "the", "here is a", "I can see a", "this is the old", "now there is a new", "look, a nice")
_AFTER: Final = ("", "again", "over there", "in the middle of it", "as it was before", "and nothing else")


def some_labels(count: int, *, generator: np.random.Generator) -> tuple[str, ...]:
    """Draws different names for text inputs: those of the modalities, or ``text``."""
    return tuple(_LABELS[i] for i in generator.permutation(len(_LABELS))[:count])


def describe_objects(kinds: Sequence[str], labels: Sequence[str], *, generator: np.random.Generator) -> str:
    """Writes objects as text inputs, with other words around each.

    Args:
        kinds: Kinds of the objects.
        labels: Name before each object.
        generator: Source of randomness.

    Returns:
        A text such as ``image: here is a chair again audio: the lamp``.
    """
    phrases = []
    for label, kind in zip(labels, kinds, strict=True):
        before, after = (words[int(generator.integers(len(words)))] for words in (_BEFORE, _AFTER))
        phrases.append(" ".join(word for word in (f"{label}:", before, kind, after) if word))
    return " ".join(phrases)


def objects_of(question: Question) -> tuple[str, ...]:
    """Returns the kinds of the objects that a question is about, in order."""
    return tuple(KINDS[number] for number in question.numbers)


def ask(task: str, labels: tuple[str, ...], *, generator: np.random.Generator) -> Question:
    """Draws a question.

    Args:
        task: ``name``, ``fact``, ``choice``; ``same``, ``which`` (of two); ``common`` (of two or three).
        labels: Name of each input, in order; ``which`` asks for one input by its name.
        generator: Source of randomness.

    Returns:
        The question; its ``numbers`` are indices in ``KINDS``. Answers are balanced over their values.
    """
    if task in {"choice", "common"}:
        return _four_options(task, len(labels), generator)
    if task == "same":
        return _same(generator)
    if task == "fact":
        return _fact(generator)
    kinds = tuple(_pick(KINDS, generator) for _ in labels)
    if task == "name":
        return _question(task, kinds, "what is it?", kinds[0])
    wanted = int(generator.integers(len(labels)))
    return _question(task, kinds, f"what is the {labels[wanted]}?", kinds[wanted])


def text_question(task: str, inputs: int, *, generator: np.random.Generator) -> tuple[str, Question]:
    """Draws a question about objects that are given as text.

    Args:
        task: Task as in ``ask``.
        inputs: Number of objects.
        generator: Source of randomness.

    Returns:
        Text of the inputs, and the question.
    """
    labels = some_labels(inputs, generator=generator)
    question = ask(task, labels, generator=generator)
    return describe_objects(objects_of(question), labels, generator=generator), question


def _pick(kinds: tuple[str, ...] | list[str], generator: np.random.Generator) -> str:
    return kinds[int(generator.integers(len(kinds)))]


def _question(task: str, kinds: tuple[str, ...], text: str, answer: str) -> Question:
    return Question(task, tuple(KINDS.index(kind) for kind in kinds), f"Question: {text} Answer:", answer)


def _same(generator: np.random.Generator) -> Question:
    first = int(generator.integers(len(KINDS)))
    same = bool(generator.integers(2))
    second = first if same else (first + 1 + int(generator.integers(len(KINDS) - 1))) % len(KINDS)
    return _question("same", (KINDS[first], KINDS[second]), "are they the same?", "yes" if same else "no")


def _fact(generator: np.random.Generator) -> Question:
    attribute, true = _pick(list(ATTRIBUTES), generator), bool(generator.integers(2))
    kind = _pick([kind for kind in KINDS if (kind in ATTRIBUTES[attribute]) == true], generator)
    return _question("fact", (kind,), f"is it {attribute}?", "yes" if true else "no")


def _four_options(task: str, inputs: int, generator: np.random.Generator) -> Question:
    """Draws options as in the family ``numbers``: wrong ones are true of as many inputs as possible, but not of all."""
    while True:
        right = _pick(list(ATTRIBUTES), generator)
        kinds = tuple(_pick(sorted(ATTRIBUTES[right]), generator) for _ in range(inputs))
        truths = {name: sum(kind in holds for kind in kinds) for name, holds in ATTRIBUTES.items()}
        wrong = [name for name, count in truths.items() if count < inputs]
        if len(wrong) < _OPTIONS - 1:
            continue
        order = [wrong[i] for i in generator.permutation(len(wrong))]
        chosen = sorted(order, key=lambda name: -truths[name])[: _OPTIONS - 1]
        place = int(generator.integers(_OPTIONS))
        options = [*chosen[:place], right, *chosen[place:]]
        lead = "which is true" if task == "choice" else "what do all have in common"
        return _question(task, kinds, f"{lead}: {', '.join(options[:-1])} or {options[-1]}?", right)
