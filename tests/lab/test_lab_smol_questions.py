"""The smol family's questions: right by the table of attributes, told again by its own means."""

from __future__ import annotations

import itertools
import re

import pytest

from mcompose.lab.randomness import generator_for
from mcompose.lab.smol.questions import ATTRIBUTES, KINDS, PAIR_TASKS, SINGLE_TASKS, ask, objects_of, text_question

OPTIONS = re.compile(r"(?:which is true|what do all have in common): (\w+), (\w+), (\w+) or (\w+)\?")


def drawn(task, labels, count=300):
    generator = generator_for(1, task)
    return [ask(task, labels, generator=generator) for _ in range(count)]


def test_smol_no_attribute_gives_another_away_and_every_kind_has_some() -> None:
    for one, other in itertools.permutations(ATTRIBUTES, 2):
        assert not ATTRIBUTES[one] <= ATTRIBUTES[other], (one, other)
    assert all(sum(kind in holds for holds in ATTRIBUTES.values()) >= 2 for kind in KINDS)
    assert set().union(*ATTRIBUTES.values()) == set(KINDS)


@pytest.mark.parametrize(
    ("task", "labels"), [("choice", ("image",)), ("common", ("a", "b")), ("common", ("a", "b", "c"))]
)
def test_smol_four_options_have_one_that_holds_for_all(task, labels) -> None:
    places = []
    for question in drawn(task, labels):
        options = OPTIONS.search(question.text).groups()
        holding = [name for name in options if all(kind in ATTRIBUTES[name] for kind in objects_of(question))]
        assert holding == [question.answer]
        assert len(objects_of(question)) == len(labels)
        places.append(options.index(question.answer))
    assert all(50 <= places.count(place) <= 105 for place in range(4))


def test_smol_fact_same_which_and_name_are_true_and_balanced() -> None:
    facts = drawn("fact", ("image",))
    for question in facts:
        attribute = re.search(r"is it (\w+)\?", question.text).group(1)
        assert question.answer == ("yes" if objects_of(question)[0] in ATTRIBUTES[attribute] else "no")
    assert 120 <= sum(q.answer == "yes" for q in facts) <= 180
    same = drawn("same", ("image", "audio"))
    assert all((q.answer == "yes") == (len(set(objects_of(q))) == 1) for q in same)
    assert 120 <= sum(q.answer == "yes" for q in same) <= 180
    for question in drawn("which", ("points", "audio")):
        label = re.search(r"what is the (\w+)\?", question.text).group(1)
        assert question.answer == objects_of(question)[("points", "audio").index(label)]
    assert all(q.answer == objects_of(q)[0] for q in drawn("name", ("image",)))


@pytest.mark.parametrize(
    ("task", "inputs"), [*((t, 1) for t in SINGLE_TASKS), *((t, 2) for t in PAIR_TASKS), ("common", 3)]
)
def test_smol_text_shows_each_object_under_its_label(task, inputs) -> None:
    generator = generator_for(2, task)
    for _ in range(50):
        said, question = text_question(task, inputs, generator=generator)
        parts = re.findall(r"(image|audio|points|text): (.*?)(?=(?: (?:image|audio|points|text):)|$)", said)
        assert len({label for label, _ in parts}) == inputs
        found = [[kind for kind in KINDS if re.search(rf"\b{kind}\b", words)] for _, words in parts]
        assert found == [[kind] for kind in objects_of(question)]
        if task == "which":
            label = re.search(r"what is the (\w+)\?", question.text).group(1)
            assert [kind for (own, _), kind in zip(parts, objects_of(question), strict=True) if own == label] == [
                question.answer
            ]


def test_smol_questions_follow_from_their_generator() -> None:
    assert drawn("common", ("a", "b")) == drawn("common", ("a", "b"))
    one, other = (text_question("which", 2, generator=generator_for(seed, "t")) for seed in (0, 1))
    assert one != other
