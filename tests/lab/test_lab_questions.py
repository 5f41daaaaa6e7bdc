"""Questions against answers worked out from their words, and their balance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mcompose.lab.batches import WordTable, collate, spell_numbers
from mcompose.lab.questions import JOINT_TASKS, SINGLE_TASKS, ask
from mcompose.lab.words import ATTRIBUTES, LETTERS, NUMBER_WORDS, VOCABULARY

KINDS = [(task, 1) for task in SINGLE_TASKS] + [(task, 2) for task in JOINT_TASKS] + [("common", 3), ("common", 4)]
RULES = {
    "even": lambda n: n % 2 == 0,
    "odd": lambda n: n % 2 == 1,
    "small": lambda n: n < 5,
    "large": lambda n: n >= 5,
    "middle": lambda n: 3 <= n <= 6,
    "prime": lambda n: n > 1 and all(n % d for d in range(2, n)),
    "square": lambda n: round(n**0.5) ** 2 == n,
    "triple": lambda n: n % 3 == 0,
}


def drawn(task: str, inputs: int, count: int = 400):
    generator = np.random.default_rng([7, inputs])
    return [ask(task, inputs, generator=generator) for _ in range(count)]


def test_lab_attributes_are_what_their_names_say() -> None:
    assert {name: {n for n in range(10) if rule(n)} for name, rule in RULES.items()} == ATTRIBUTES
    sets = list(ATTRIBUTES.values())
    assert not any(a < b for a in sets for b in sets)


@pytest.mark.parametrize(("task", "inputs"), KINDS)
def test_lab_answers_follow_from_the_words(task, inputs) -> None:
    for question in drawn(task, inputs):
        numbers, words = question.numbers, question.text.split()
        assert len(numbers) == inputs
        assert words[-1] == "answer"
        if task in {"choice", "common"}:
            options = dict(zip(words[-9:-1:2], words[-8:-1:2], strict=True))
            assert list(options) == list(LETTERS)
            right = [letter for letter, name in options.items() if all(map(RULES[name], numbers))]
            assert right == [question.answer]
        else:
            expected = {
                "name": lambda n: NUMBER_WORDS[n[0]],
                "parity": lambda n: ("even", "odd")[n[0] % 2],
                "size": lambda n: "small" if n[0] < 5 else "large",
                "sum": lambda n: NUMBER_WORDS[n[0] + n[1]],
                "same": lambda n: "yes" if n[0] == n[1] else "no",
                "larger": lambda n: NUMBER_WORDS[max(n)],
            }[task](numbers)
            assert question.answer == expected


@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_lab_four_options_cannot_be_guessed(inputs) -> None:
    questions = drawn("choice" if inputs == 1 else "common", inputs, count=3000)
    letters = Counter(q.answer for q in questions)
    assert all(abs(letters[letter] / len(questions) - 0.25) < 0.03 for letter in LETTERS)
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for q in questions:
        options = q.text.split()[-8:-1:2]
        offered.update(options)
        right[options[LETTERS.index(q.answer)]] += 1
    # Always picking the likeliest attribute gives little more than chance.
    assert max(right[name] / offered[name] for name in ATTRIBUTES) < 0.32


@pytest.mark.parametrize(("inputs", "bound"), [(2, 0.62), (3, 0.50), (4, 0.46)])
def test_lab_one_input_alone_says_little(inputs, bound) -> None:
    """A perfect reader of the first input, who guesses among the options that are true of it."""
    scores = []
    for q in drawn("common", inputs, count=2000):
        options = q.text.split()[-8:-1:2]
        open_still = [name for name in options if q.numbers[0] in ATTRIBUTES[name]]
        scores.append(1 / len(open_still))
    assert np.mean(scores) < bound


def test_lab_same_is_balanced() -> None:
    assert abs(Counter(q.answer for q in drawn("same", 2, count=2000))["yes"] / 2000 - 0.5) < 0.04


def test_lab_text_inputs_hold_the_number_once_and_known_words_only() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        said = spell_numbers([3, 8], generator=generator).split()
        assert [word for word in said if word in NUMBER_WORDS] == ["three", "eight"]
        assert set(said) <= set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_lab_batches_end_in_answer_and_end() -> None:
    table = WordTable({word: index for index, word in enumerate(VOCABULARY)})
    questions = drawn("common", 3, count=3) + drawn("name", 1, count=2)
    prompts = [f"image seven {q.text}" for q in questions]
    batch = collate(prompts, questions, table=table)
    for row, mask, label, prompt, question in zip(
        batch.input_ids, batch.attention_mask, batch.labels, prompts, questions, strict=True
    ):
        words = [VOCABULARY[i] for i in row[mask.bool()]]
        assert words == ["<bos>", *prompt.split(), question.answer, "<eos>"]
        assert [VOCABULARY[i] for i in label[-2:]] == [question.answer, "<eos>"]
        assert (label[:-2] == -100).all()
        assert (row[~mask.bool()] == table.pad).all()
