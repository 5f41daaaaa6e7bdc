"""Scoring rules, as pure functions of an answer and what it should be.

Paper: MCUB and AVQA, arXiv 2402.12750: the first character of the stripped output equals the letter, case-sensitive, so
"(A)" and "The answer is A" are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mcompose.errors import UnknownNameError, nearest_name
from mcompose.evaluate.extraction.graded import GRADED, GROUPS, Graded
from mcompose.evaluate.extraction.relaxed import relaxed_match
from mcompose.evaluate.grounding.graded import GROUNDED
from mcompose.evaluate.option_letters import parse_letter
from mcompose.evaluate.vqa_answers import normalise_answer

__all__ = [
    "RULES",
    "Verdict",
    "accuracy",
    "exact_match",
    "expanded",
    "first_letter",
    "graded",
    "is_right",
    "label_named",
    "rule_for",
    "score",
    "vqa_match",
]

Verdict = bool | float | None
"""Right or wrong, or a share; None: the output could not be read, which is wrong and counted."""


def first_letter(output: str, answer: str) -> bool:
    """Returns whether the first character of the stripped output is the letter.

    Args:
        output: What the model wrote.
        answer: The letter.

    Returns:
        True when it is; case matters.
    """
    return output.strip()[:1] == answer


def exact_match(output: str, answer: str) -> bool:
    """Returns whether the stripped output is the stripped answer.

    Args:
        output: What the model wrote.
        answer: What it should be.

    Returns:
        True when they are equal; case matters.
    """
    return output.strip() == answer.strip()


def vqa_match(output: str, answer: str) -> bool:
    """Returns whether output and answer are equal once both went through the VQA normaliser.

    Args:
        output: What the model wrote.
        answer: What it should be.

    Returns:
        True when they are equal.
    """
    return normalise_answer(output) == normalise_answer(answer)


def label_named(output: str, answer: str) -> bool:
    """Returns whether the label stands somewhere in the output, whatever else stands there.

    Args:
        output: What the model wrote.
        answer: A label such as ``night_stand``.

    Returns:
        True when it does; case and underscores do not matter. "A cupboard" names "cup": the rule is that simple.
    """
    return _plain(answer) in _plain(output)


def _lenient_letter(output: str, answer: str, choices: Mapping[str, str]) -> bool | None:
    letter = parse_letter(output, choices)
    return None if letter is None else letter == answer


def _sole_label(output: str, answer: str, choices: Mapping[str, str]) -> bool | None:
    """Right when the label is the only one of the classes that is named as a word; None when none or several are.

    A label inside a longer one that is named as well ("stand" in "night stand") does not count.
    """
    words = f" {' '.join(_plain(''.join(c if c.isalnum() else ' ' for c in output)).split())} "
    named = [label for label in map(_plain, choices.values()) if f" {label} " in words]
    sole = [label for label in named if not any(label != other and f" {label} " in f" {other} " for other in named)]
    return sole[0] == _plain(answer) if len(sole) == 1 else None


def _plain(text: str) -> str:
    return text.casefold().replace("_", " ").strip()


def accuracy(right: Sequence[bool]) -> float:
    """Returns share of right answers.

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


RULES: Final[dict[str, Callable[..., bool | None]]] = {
    "letter": first_letter,
    "letter_lenient": _lenient_letter,
    "exact_match": exact_match,
    "vqa_match": vqa_match,
    "label": label_named,
    "label_sole": _sole_label,
    "relaxed_accuracy": relaxed_match,
}
_SHARES: Final[dict[str, Graded]] = {**GRADED, **GROUNDED}
_WITH_CHOICES: Final = frozenset({"letter_lenient", "label_sole"})


def rule_for(metric: str) -> Callable[..., Verdict]:
    """Returns the rule behind a metric's name.

    Args:
        metric: A rule's name; ``joint_`` before it marks a question over several inputs and changes nothing.

    Returns:
        The rule.

    Raises:
        UnknownNameError: No rule has that name.
    """
    name = metric.removeprefix("joint_")
    if name in RULES:
        return RULES[name]
    if name in _SHARES:
        return _SHARES[name].score
    raise UnknownNameError(f"No metric is called '{metric}'.", hint=nearest_name(name, [*RULES, *GROUPS, *_SHARES]))


def graded(metric: str) -> Graded | None:
    """Returns what is special about a metric whose values are shares.

    Args:
        metric: A metric's name, with or without ``joint_``.

    Returns:
        Its entry; None for a metric of verdicts.
    """
    return _SHARES.get(metric.removeprefix("joint_"))


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Groups of metrics replaced by their members.

    Args:
        names: Names of metrics and groups; ``joint_`` before a group goes to its members.

    Returns:
        Names of metrics, each once, in order.
    """
    found: dict[str, None] = {}
    for name in names:
        joint = "joint_" if name.startswith("joint_") else ""
        for member in GROUPS.get(name.removeprefix("joint_"), (name.removeprefix("joint_"),)):
            found[joint + member] = None
    return tuple(found)


def score(
    metric: str, output: str, answer: str, *, choices: Mapping[str, str], accepted: Sequence[str] = ()
) -> Verdict:
    """Returns one verdict.

    Args:
        metric: A metric's name, with or without ``joint_``.
        output: What the model wrote.
        answer: What it should be.
        choices: The question's options, letter (or index) to text.
        accepted: Further right answers; the best verdict counts.

    Returns:
        Right or wrong, or a share; None when the rule could not tell what the output means. That is counted, and wrong.
    """
    if entry := graded(metric):
        return entry.value(output, (answer, *accepted))
    extra = (choices,) if metric.removeprefix("joint_") in _WITH_CHOICES else ()
    verdicts = [rule_for(metric)(output, one, *extra) for one in (answer, *accepted)]
    return True if True in verdicts else verdicts[0]


def is_right(metric: str, verdict: Verdict) -> bool:
    """Returns whether an answer has nothing wrong with it.

    Args:
        metric: A metric's name.
        verdict: What it said.

    Returns:
        True for right, and for the best share there is.
    """
    entry = graded(metric)
    return verdict is True if entry is None else verdict == entry.best
