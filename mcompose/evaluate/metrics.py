"""Scoring rules, as pure functions of an answer and what it should be.

Paper: MCUB and AVQA, arXiv 2402.12750: the first character of the stripped output equals the letter, case-sensitive, so
"(A)" and "The answer is A" are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mcompose.errors import UnknownNameError, nearest_name

__all__ = ["RULES", "accuracy", "exact_match", "first_letter", "rule_for"]


def first_letter(output: str, answer: str) -> bool:
    """Whether the first character of the stripped output is the letter.

    Args:
        output: What the model wrote.
        answer: The letter.

    Returns:
        True when it is; case matters.
    """
    return output.strip()[:1] == answer


def exact_match(output: str, answer: str) -> bool:
    """Whether the stripped output is the stripped answer.

    Args:
        output: What the model wrote.
        answer: What it should be.

    Returns:
        True when they are equal; case matters.
    """
    return output.strip() == answer.strip()


def accuracy(right: Sequence[bool]) -> float:
    """Share of right answers.

    Args:
        right: One verdict per item, of all items: an item without an answer counts as wrong.

    Returns:
        0 to 1.

    Raises:
        ValueError: There are no items.
    """
    if not right:
        raise ValueError("An accuracy needs at least one item.")
    return sum(right) / len(right)


RULES: Final[dict[str, Callable[[str, str], bool]]] = {"letter": first_letter, "exact_match": exact_match}


def rule_for(metric: str) -> Callable[[str, str], bool]:
    """The rule behind a metric's name.

    Args:
        metric: A rule's name; ``joint_`` before it marks a question over several inputs and changes nothing.

    Returns:
        The rule.

    Raises:
        UnknownNameError: No rule has that name.
    """
    name = metric.removeprefix("joint_")
    if name not in RULES:
        raise UnknownNameError(f"No metric is called '{metric}'.", hint=nearest_name(name, RULES))
    return RULES[name]
