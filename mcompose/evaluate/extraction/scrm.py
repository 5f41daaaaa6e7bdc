"""SCRM: how much of a chart's data table was read rightly, with tolerances.

A table is a set of facts (row name, column name, value). Its similarity to the label is the number of facts that agree
over the number of facts in either (intersection over union). The precision at a threshold is the share of charts whose
similarity reaches it; AP is the mean over the thresholds 0.50, 0.55, ..., 0.95. Names may be ``words`` edits apart and
numbers off by ``share`` of the label:

=======  ============  =============================================================
         easy charts   hard ones (rose, area, 3-D bar, bubble, several axes, radar)
=======  ============  =============================================================
strict   0, 0          0, 10 %
slight   2, 5 %        2, 30 %
high     5, 10 %       5, 50 %
=======  ============  =============================================================

Paper: StructChart, arXiv 2309.11268; tolerances as in the code of ChartX and ChartVLM, arXiv 2402.12185.
Differs: (1) A deviation is relative to the label's size; theirs keeps its sign, so that any number is right where the
label is negative. (2) Facts are matched one to one; there, two near facts both match one label, and a similarity can
exceed 1. (3) Names are compared as a pair, in either order; there, as one string after sorting, where a typing error in
a first letter may swap them. (4) A number never matches a word; there, "12" and "n/a" do at the tolerance high. (5)
Tables may be written in any usual way (``chart_tables``); there, only with literal backslash-t and backslash-n, and a
title line needs another version of the code. (6) Thousands may have commas; "nan" and "inf" are words.
(7) A similarity of exactly 0.7 reaches the threshold 0.70, which rounding prevents there. (8) A label without facts is
an error; there, a division by zero. ``paper=True`` (metrics ``scrm_paper_...``) keeps to the published code in 1 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mcompose.evaluate.extraction import scrm_published
from mcompose.evaluate.extraction.chart_tables import Fact, facts_of
from mcompose.evaluate.extraction.edit_distance import levenshtein
from mcompose.evaluate.extraction.reading_errors import BadReferenceError

__all__ = [
    "THRESHOLDS",
    "TOLERANCES",
    "average_precision",
    "check_chart",
    "check_published",
    "exact_share",
    "has_facts",
    "published_average_precision",
    "scrm_similarity",
]

TOLERANCES: Final = {
    ("strict", False): (0, 0.0),
    ("slight", False): (2, 0.05),
    ("high", False): (5, 0.1),
    ("strict", True): (0, 0.1),
    ("slight", True): (2, 0.3),
    ("high", True): (5, 0.5),
}
"""(name, hard chart) to (edits of names, deviation of numbers)."""
THRESHOLDS: Final = tuple(percent / 100 for percent in range(50, 100, 5))
_ROUNDING: Final = 1e-9
_SMALLEST: Final = 1e-6


def scrm_similarity(
    output: str,
    reference: str,
    *,
    tolerance: str = "strict",
    hard: bool = False,
    paper: bool = False,
    title: bool = False,
) -> float:
    """Returns share of facts on which two tables agree.

    Args:
        output: The table that the model wrote.
        reference: The chart's table.
        tolerance: "strict", "slight" or "high".
        hard: Whether the chart is of a kind that is hard to read values from.
        paper: Compute it as the published code does.
        title: With ``paper``: the output begins with a title line (PlotQA), the label does not. Otherwise titles are
            recognised in both.

    Returns:
        0 to 1 (with ``paper``, possibly more); 0 for an output that is not a table.

    Raises:
        BadReferenceError: The reference has no facts.
    """
    words, share = TOLERANCES[tolerance, hard]
    if paper:
        return scrm_published.similarity(output, reference, words=words, share=share, title=title)
    wanted, given = facts_of(reference), facts_of(output)
    if not wanted:
        raise BadReferenceError("The reference is not a table with a header, a row, and a value in it.")
    near = [[j for j, fact in enumerate(wanted) if _agree(one, fact, words=words, share=share)] for one in given]
    both = _pairs(near)
    return both / (len(given) + len(wanted) - both)


def average_precision(similarities: Sequence[float], *, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Returns mean over thresholds of the share of charts that reach each.

    Args:
        similarities: One per chart.
        thresholds: Thresholds of similarity.

    Returns:
        0 to 1.

    Raises:
        ValueError: There are no charts.
    """
    if not similarities:
        raise ValueError("A precision needs at least one chart.")
    reached = sum(one >= least - _ROUNDING for least in thresholds for one in similarities)
    return reached / (len(thresholds) * len(similarities))


def published_average_precision(similarities: Sequence[float]) -> float:
    """Returns the same with the thresholds of the published code, some of which rounding lifted a little.

    Args:
        similarities: One per chart.

    Returns:
        0 to 1.
    """
    step = (0.5 + 0.05) - 0.5
    reached = sum(one >= 0.5 + k * step for k in range(10) for one in similarities)
    return reached / (10 * len(similarities))


def exact_share(similarities: Sequence[float]) -> float:
    """Returns share of charts without any fault.

    Args:
        similarities: One per chart, at the tolerance strict.

    Returns:
        0 to 1.
    """
    return average_precision(similarities, thresholds=(1.0,))


def has_facts(output: str) -> bool:
    """Returns whether an output can be read as a chart's table.

    Args:
        output: What the model wrote.

    Returns:
        True when it can.
    """
    return bool(facts_of(output))


def check_chart(reference: str) -> None:
    """Refuses a reference that is not a chart's table.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It has no facts.
    """
    if not facts_of(reference):
        raise BadReferenceError("The reference is not a table with a header, a row, and a value in it.")


def check_published(reference: str) -> None:
    """Refuses a reference that the published code finds no values in.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It finds none.
    """
    if not scrm_published.has_rows(reference):
        raise BadReferenceError(scrm_published.NO_VALUES)


def _agree(given: Fact, wanted: Fact, *, words: int, share: float) -> bool:
    if given.number is None or wanted.number is None:
        return given.number is wanted.number and _edits(given, wanted) + levenshtein(given.word, wanted.word) <= words
    near = abs(given.number - wanted.number) <= share * (abs(wanted.number) + _SMALLEST)
    return near and _edits(given, wanted) <= words


def _edits(given: Fact, wanted: Fact) -> int:
    """Between the names, in whichever order is nearer."""
    turned = given.names[1], given.names[0]
    return min(_apart(given.names, wanted.names), _apart(turned, wanted.names))


def _apart(given: tuple[str, str], wanted: tuple[str, str]) -> int:
    return levenshtein(given[0], wanted[0]) + levenshtein(given[1], wanted[1])


def _pairs(near: Sequence[Sequence[int]]) -> int:
    """Most facts that can be paired one to one: each new one may send others along a path that ends at a free label."""
    label_of: dict[int, int] = {}
    fact_of: dict[int, int] = {}
    for start in range(len(near)):
        reached: dict[int, int] = {}
        queue = [start]
        free = None
        for one in queue:
            for label in (label for label in near[one] if label not in reached):
                reached[label] = one
                if label not in fact_of:
                    free = label
                    break
                queue.append(fact_of[label])
            if free is not None:
                break
        while free is not None:
            one = reached[free]
            fact_of[free] = one
            label_of[one], free = free, label_of.get(one)
    return len(fact_of)
