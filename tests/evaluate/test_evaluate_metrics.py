"""Scoring rules against verdicts worked out by hand."""

from __future__ import annotations

import pytest

from mcompose.errors import UnknownNameError
from mcompose.evaluate import accuracy, exact_match, first_letter
from mcompose.evaluate.metrics import rule_for


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("B", True),
        ("  B. both are even", True),
        ("Because", True),  # the published rule reads the first character and nothing else
        ("b", False),
        ("(B)", False),
        ("The answer is B", False),
        ("", False),
    ],
)
def test_evaluate_letter_is_the_first_character(output, right) -> None:
    assert first_letter(output, "B") is right


@pytest.mark.parametrize(
    ("output", "right"), [("seven", True), (" seven \n", True), ("Seven", False), ("seven seven", False), ("", False)]
)
def test_evaluate_exact_match_strips_and_nothing_else(output, right) -> None:
    assert exact_match(output, "seven") is right


def test_evaluate_accuracy_counts_every_item() -> None:
    assert accuracy([True, False, True, True]) == 0.75
    with pytest.raises(ValueError, match="at least one"):
        accuracy([])


def test_evaluate_joint_metrics_share_their_rule() -> None:
    assert rule_for("joint_letter") is first_letter
    assert rule_for("exact_match") is exact_match
    with pytest.raises(UnknownNameError, match=r"'joint_leter'.*Did you mean 'letter'"):
        rule_for("joint_leter")
