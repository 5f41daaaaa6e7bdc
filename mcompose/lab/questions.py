"""Questions about numbers, with their wording and answers.

A question holds its numbers and does not depend on media: the same question is asked with text inputs (training of the
base, text ceiling) and with media (donors, composition).

The commonality question follows MCUB's four-option form. Its wrong options are chosen so that one input alone helps
little: each is true of as many inputs as possible without being true of all, and each attribute is as often wrong as
it is right, so that no option is likelier than another before the inputs are seen.

Paper: MCUB, arXiv 2402.12750 (form and scoring; its entities are real pictures, sounds, clips and objects).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mcompose.lab.words import ATTRIBUTES, LETTERS, NUMBER_WORDS, NUMBERS

__all__ = ["JOINT_TASKS", "SINGLE_TASKS", "TEXT_TASKS", "Question", "ask"]

SINGLE_TASKS: Final = ("name", "parity", "size", "choice")
PAIR_TASKS: Final = ("sum", "same", "larger")
JOINT_TASKS: Final = (*PAIR_TASKS, "common")
TEXT_TASKS: Final = (*SINGLE_TASKS, *JOINT_TASKS)


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        task: One of ``TEXT_TASKS``.
        numbers: Numbers that its inputs show, in order.
        text: Words after the inputs, ending in ``answer``.
        answer: Right answer, one word.
    """

    task: str
    numbers: tuple[int, ...]
    text: str
    answer: str


def ask(task: str, inputs: int, *, generator: np.random.Generator) -> Question:
    """Draws a question.

    Args:
        task: One of ``TEXT_TASKS``.
        inputs: Number of inputs: 1 for the single tasks, 2 for sum, same and larger, 2 to 4 for common.
        generator: Source of randomness.

    Returns:
        The question. Answers are balanced over their values as far as the task allows.
    """
    if task in {"choice", "common"}:
        return _four_options(task, inputs, generator)
    if task == "same":
        return _same(generator)
    numbers = tuple(int(n) for n in generator.choice(NUMBERS, size=inputs))
    first = numbers[0]
    text, answer = {
        "name": ("which number ?", NUMBER_WORDS[first]),
        "parity": ("even or odd ?", "even" if first % 2 == 0 else "odd"),
        "size": ("small or large ?", "small" if first < 5 else "large"),
        "sum": ("what is the sum ?", NUMBER_WORDS[sum(numbers)]),
        "larger": ("which is larger ?", NUMBER_WORDS[max(numbers)]),
    }[task]
    return Question(task, numbers, f"{text} answer", answer)


def _same(generator: np.random.Generator) -> Question:
    first = int(generator.choice(NUMBERS))
    same = bool(generator.integers(2))
    second = first if same else (first + 1 + int(generator.integers(9))) % 10
    return Question("same", (first, second), "are they the same ? answer", "yes" if same else "no")


def _four_options(task: str, inputs: int, generator: np.random.Generator) -> Question:
    while True:
        right = str(generator.choice(list(ATTRIBUTES)))
        numbers = tuple(int(n) for n in generator.choice(sorted(ATTRIBUTES[right]), size=inputs))
        truths = {name: sum(n in holds for n in numbers) for name, holds in ATTRIBUTES.items()}
        wrong = [name for name, count in truths.items() if count < inputs]
        if len(wrong) < 3:
            continue
        # The sort is stable, so the shuffle decides among options that are true of equally many inputs.
        order = [wrong[i] for i in generator.permutation(len(wrong))]
        chosen = sorted(order, key=lambda name: -truths[name])[:3]
        place = int(generator.integers(4))
        options = [*chosen[:place], right, *chosen[place:]]
        listed = " ".join(f"{letter} {name}" for letter, name in zip(LETTERS, options, strict=True))
        lead = "which is true ?" if task == "choice" else "what do all have in common ?"
        return Question(task, numbers, f"{lead} {listed} answer", LETTERS[place])
