"""Scores of one answer. Strict on purpose: what published evaluations of these tasks use, and nothing friendlier.

Paper: Model Composition, arXiv 2402.12750: MCUB and AVQA compare the first character of the answer with the letter.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["METRICS", "exact_match", "letter"]


def letter(answer: str, gold: str) -> float:
    """1.0 when the first character of the stripped answer is the gold letter; ``(A)`` and ``a`` are wrong for ``A``.

    Args:
        answer: What the model said.
        gold: One letter.

    Returns:
        1.0 or 0.0.
    """
    return float(answer.strip()[:1] == gold)


def exact_match(answer: str, gold: str) -> float:
    """1.0 when the stripped answer is the gold text, character by character.

    Args:
        answer: What the model said.
        gold: The right answer.

    Returns:
        1.0 or 0.0.
    """
    return float(answer.strip() == gold.strip())


METRICS: dict[str, Callable[[str, str], float]] = {"letter": letter, "exact_match": exact_match}
