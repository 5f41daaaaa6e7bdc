"""The family ``smol``: what is asked of objects, in which words, and with what answer.

The shared concept is a kind of object, such as a chair. It can be seen (a rendered picture), heard (its name spoken)
and touched (a cloud of points), and it can be read (text). A question names its objects and knows nothing of media; the
same one is asked of text and of media. What is true of a kind is set here: it is a convention of this family, which the
base learns from text, and no fact about the world that a label would have to be right about.

Every answer is one token of SmolLM2's vocabulary. No attribute's set lies inside another's, so none gives another away.

Paper: MCUB, arXiv 2402.12750 (the commonality question, with one right option of four).
Differs: the answer is the option itself. Its letter is one more step, which a model of this size is slow to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mcompose.lab.questions import Question
from mcompose.modalities import MODALITIES as ALL_MODALITIES

__all__ = [
    "ATTRIBUTES", "KINDS", "MODALITIES", "PAIR_TASKS", "SINGLE_TASKS", "ask", "said_as_text",
    "shown", "some_labels", "text_question",
]  # fmt: skip

MODALITIES: Final = tuple(modality for modality in ALL_MODALITIES if modality != "video")
"""What objects of this family are shown as: they do not move, so there are no videos."""
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
    """Different names for text inputs: those of the modalities, or ``text``."""
    return tuple(_LABELS[i] for i in generator.permutation(len(_LABELS))[:count])


def said_as_text(kinds: Sequence[str], labels: Sequence[str], *, generator: np.random.Generator) -> str:
    """Objects as text inputs, with other words around each.

    Args:
        kinds: The objects.
        labels: The name before each.
        generator: Source of randomness.

    Returns:
        Such as ``image: here is a chair again audio: the lamp``.
    """
    said = []
    for label, kind in zip(labels, kinds, strict=True):
        before, after = (words[int(generator.integers(len(words)))] for words in (_BEFORE, _AFTER))
        said.append(" ".join(word for word in (f"{label}:", before, kind, after) if word))
    return " ".join(said)


def shown(question: Question) -> tuple[str, ...]:
    """Returns the objects that a question is about, in order."""
    return tuple(KINDS[number] for number in question.numbers)


def ask(task: str, labels: tuple[str, ...], *, generator: np.random.Generator) -> Question:
    """Draws a question.

    Args:
        task: ``name``, ``fact``, ``choice``; ``same``, ``which`` (of two); ``common`` (of two or three).
        labels: Under which name each input is shown, in order; ``which`` asks for one by it.
        generator: Source of randomness.

    Returns:
        The question; ``numbers`` are places in ``KINDS``. Answers are balanced over their values.
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
    """Returns a question about objects that are text.

    Args:
        task: As ``ask`` takes it.
        inputs: How many objects.
        generator: Source of randomness.

    Returns:
        What stands before the question, and the question.
    """
    labels = some_labels(inputs, generator=generator)
    question = ask(task, labels, generator=generator)
    return said_as_text(shown(question), labels, generator=generator), question


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
    """As in the numbers family: wrong options hold for as many inputs as they can without holding for all."""
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
