"""Relaxed accuracy: numbers may be 5 % off, words may not.

Paper: ChartQA, arXiv 2203.10244; PlotQA, arXiv 1909.00997.
Differs: The usual implementation (Pix2Struct's) takes a label of 0 for words, so that "0.0" is wrong for "0"; here 0 is
a number, and only 0 is right. Spaces around an answer and commas between thousands do not count. As there, "5%" means
0.05, and other words are compared without regard to case.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["number_in", "relaxed_match"]

_NUMBER: Final = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)


def number_in(text: str) -> float | None:
    """Returns the number that a text is, and nothing else.

    Args:
        text: Such as ``-1,234.5`` or ``2e3``; a minus sign may be the typographic one.

    Returns:
        The number; None when the text is none, or has none of finite size.
    """
    plain = text.strip().replace("\N{MINUS SIGN}", "-")
    if not _NUMBER.fullmatch(plain) or not re.match(r"[+-]?\.?\d", plain):
        return None
    value = float(plain.replace(",", ""))
    return value if abs(value) < float("inf") else None


def relaxed_match(output: str, reference: str, *, tolerance: float = 0.05) -> bool:
    """Returns whether a number is near enough, or words are the same.

    Args:
        output: What the model wrote.
        reference: What it should be.
        tolerance: Largest deviation of a number, relative to the reference's size; the bound itself is near enough.

    Returns:
        True when it is right.
    """
    wanted, given = _quantity(reference), _quantity(output)
    if wanted is None or given is None:
        return output.strip().lower() == reference.strip().lower()
    return abs(given - wanted) <= tolerance * abs(wanted) * (1 + 1e-9)


def _quantity(text: str) -> float | None:
    text = text.strip()
    value = number_in(text.removesuffix("%"))
    return value / 100 if value is not None and text.endswith("%") else value
