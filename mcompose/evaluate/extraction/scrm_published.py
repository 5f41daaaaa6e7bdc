"""SCRM with the peculiarities of its published code, for figures that are to be compared with published ones.

``scrm`` lists them. The formulas were written down from the code's behaviour; the code itself is not here.
"""

from __future__ import annotations

from typing import Final

from mcompose.evaluate.extraction.edit_distance import levenshtein
from mcompose.evaluate.extraction.reading_errors import BadReferenceError

__all__ = ["NO_VALUES", "has_rows", "similarity"]

NO_VALUES: Final = r"The reference has no values between literal \t and \n, which the published code reads."
Row = tuple[str, str, float | str]


def similarity(output: str, reference: str, *, words: int, share: float, title: bool = False) -> float:
    r"""Similarity of two tables.

    Args:
        output: What the model wrote, cells between literal ``\t`` and rows between literal ``\n``.
        reference: The chart's table, in the same form.
        words: Edits that names may be apart.
        share: Deviation that numbers may have.
        title: Whether the output begins with a title line; the label never does.

    Returns:
        Not negative; more than 1 when several rows match one of the label.

    Raises:
        BadReferenceError: The reference has no values.
    """
    given, wanted = _rows(output, title=title), _rows(reference, title=False)
    if not wanted:
        raise BadReferenceError(NO_VALUES)
    matched = {one for one in given if any(_agree(one, label, words=words, share=share) for label in wanted)}
    union = len(given | wanted) - len(matched - (given & wanted))
    return len(matched) / union if union else 0.0


def has_rows(output: str, *, title: bool = False) -> bool:
    """Returns whether the published code finds values in an output.

    Args:
        output: What the model wrote.
        title: Whether it begins with a title line.

    Returns:
        True when it does.
    """
    return bool(_rows(output, title=title))


def _rows(text: str, *, title: bool) -> set[Row]:
    lines = text.strip().split("\\n")[int(title) :]
    if not lines:
        return set()
    header = lines[0].split("\\t")
    found: set[Row] = set()
    for line in filter(None, lines[1:]):
        cells = line.split("\\t")
        for name, cell in zip(header[1:], cells[1:], strict=False):
            first, second = sorted((cells[0].strip(), name.strip()))
            found.add((first.lower(), second.lower(), _value(cell.strip().replace("%", "").replace("$", ""))))
    return found


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()


def _agree(given: Row, wanted: Row, *, words: int, share: float) -> bool:
    number, label = _as_number(given[2]), _as_number(wanted[2])
    if number is None or label is None:
        return levenshtein("".join(map(str, given)), "".join(map(str, wanted))) <= words
    deviation = abs(number - label) / ((label + 0.000001) or float("nan"))
    return levenshtein(given[0] + given[1], wanted[0] + wanted[1]) <= words and deviation <= share


def _as_number(value: float | str) -> float | None:
    return value if isinstance(value, float) else None
