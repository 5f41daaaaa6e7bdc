"""Edits between two texts: Levenshtein distance, its normalised forms, and ANLS.

Paper: normalised edit distance as in Nougat, arXiv 2308.13418 (over the longer length); ANLS, arXiv 1905.13648.
Differs: ANLS compares lower-cased texts with single spaces, as usual packages do; the paper's formula says neither.
"""

from __future__ import annotations

from typing import Final

__all__ = ["anls", "edit_similarity", "levenshtein", "normalised_edit_distance"]

_THRESHOLD: Final = 0.5


def levenshtein(left: str, right: str) -> int:
    """Insertions, deletions and substitutions of characters from one text to the other.

    Args:
        left: One text.
        right: The other.

    Returns:
        The least number of them.
    """
    from rapidfuzz.distance import Levenshtein  # noqa: PLC0415 - an extra: other metrics do without it

    return Levenshtein.distance(left, right)


def normalised_edit_distance(output: str, reference: str) -> float:
    """Edit distance over the length of the longer text.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 (equal) to 1; 0 when both are empty.
    """
    longer = max(len(output), len(reference))
    return levenshtein(output, reference) / longer if longer else 0.0


def edit_similarity(output: str, reference: str) -> float:
    """Returns one minus the normalised edit distance, so that more is better.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1 (equal).
    """
    return 1.0 - normalised_edit_distance(output, reference)


def anls(output: str, reference: str) -> float:
    """Normalised Levenshtein similarity, 0 when half of the text or more is wrong.

    Args:
        output: What the model wrote.
        reference: An accepted answer; with several, the best score counts.

    Returns:
        0, or more than 0.5 up to 1. The mean over questions is ANLS.
    """
    distance = normalised_edit_distance(_folded(output), _folded(reference))
    return 1.0 - distance if distance < _THRESHOLD else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
