"""Lenient letters, VQA answers and labels against verdicts worked out by hand."""

from __future__ import annotations

import pytest

from mcompose.evaluate.metrics import label_named, rule_for, score, vqa_match
from mcompose.evaluate.option_letters import choices_in, parse_letter
from mcompose.evaluate.vqa_answers import normalise_answer

CHOICES = {"A": "a dog", "B": "red", "C": "music", "D": "a red car"}


def test_evaluate_choices_are_read_from_their_lines() -> None:
    question = "image: <image>\nWhat is common?\nA. a dog\n(B) red\n C) music \nD: a red car\nAnswer with a letter."
    assert choices_in(question) == CHOICES
    assert choices_in("What is it? A dog. Or B.") == {}


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("**C**", "C"),
        ("B. red", "B"),
        ("(D) a red car", "D"),
        ("The answer is B.", "B"),
        ("the Answer is (c), since both play", "C"),
        ("Option D", "D"),
        ("answer: A", "A"),
        ("I would say (c).", "C"),
        ("They share music", "C"),
        ("The answer is a dog", "A"),  # an article is not a letter; the words decide
        ("A dog", "A"),
        ("a car", None),
        ("A or B", None),
        ("(A) or (B)?", "A"),  # a leading letter with its mark wins, as in the published rule
        ("either (a) or (b)", None),
        ("a red car", "D"),  # 'red' is inside it
        ("a red car and music", None),
        ("E", None),
        ("", None),
        ("Because of it", None),
        ("I cannot tell", None),
    ],
)
def test_evaluate_lenient_letter_reads_what_a_person_reads(output, letter) -> None:
    assert parse_letter(output, CHOICES) == letter


def test_evaluate_lenient_letter_counts_what_it_cannot_read() -> None:
    assert score("joint_letter_lenient", "The answer is B", "B", choices=CHOICES) is True
    assert score("letter_lenient", "The answer is B", "C", choices=CHOICES) is False
    assert score("letter_lenient", "hm", "C", choices=CHOICES) is None
    assert score("letter", "hm", "C", choices=CHOICES) is False


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("The violin", "violin"),
        ("two", "2"),
        ("Ten", "10"),
        ("none", "0"),
        ("more than ten!", "more than 10"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("100,978", "100978"),
        ("2.5", "2.5"),
        ("2:50 pm", "2:50 pm"),
        ("left-right", "left right"),  # a joint between words becomes a space
        ("left - right", "left right"),
        ("the girl's piano", "girl 's piano"),
        ("a\nsaxophone\t?", "saxophone"),
        ("(both)", "both"),
        ("an accordion, a tuba", "accordion tuba"),
        ("", ""),
        ("The", ""),
    ],
)
def test_evaluate_vqa_normaliser(text, normal) -> None:
    assert normalise_answer(text) == normal


def test_evaluate_vqa_match_is_equality_and_not_containment() -> None:
    assert vqa_match("The Piano.", "piano")
    assert vqa_match("Two", "2")
    assert not vqa_match("a grand piano", "piano")
    assert rule_for("joint_vqa_match") is vqa_match


def test_evaluate_label_rules() -> None:
    classes = {"0": "cup", "1": "night_stand", "2": "tv_stand", "3": "plant", "4": "stand"}
    assert label_named("This is a Night Stand.", "night_stand")
    assert label_named("a cupboard", "cup")
    assert not label_named("a mug", "cup")
    assert score("label_sole", "This is a Night stand.", "night_stand", choices=classes) is True
    assert score("label_sole", "a tv_stand", "night_stand", choices=classes) is False
    assert score("label_sole", "a cupboard", "cup", choices=classes) is None
    assert score("label_sole", "a cup with a plant", "cup", choices=classes) is None
