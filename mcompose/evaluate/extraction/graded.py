"""Metrics that give a share instead of a verdict: their names in task files, and how their values are put together.

=============================  ======================================================================================
scrm_strict, _slight, _high    data table of a chart: AP over similarity 0.50 to 0.95; scrm_em: share without a fault
scrm                           these four together; with ``_hard`` behind, the tolerances for hard charts;
                               scrm_paper...: with the published code's peculiarities; scrm_paper_titled...: its
                               form for PlotQA, whose outputs begin with a title line
teds, teds_structure           tables as trees, with and without the cells' texts; teds_paper...: as published
edit_similarity                1 - normalised edit distance; edit_distance: the distance itself (less is better)
bleu, bleu_sentence            over all texts together; mean over texts
meteor, meteor_wordnet         without and with synonyms
word_precision, _recall, _f1   over sets of words
bleu_got, meteor_got,          as the evaluation script of GOT-OCR2.0 prints them (label and answer in each other's
word_precision_got             place)
cider                          CIDEr-D over all answers together, 0 to 10 as pycocoevalcap prints it
anls                           normalised Levenshtein similarity with its cut at one half
=============================  ======================================================================================

``relaxed_accuracy`` is a verdict and stands with the other rules; ``grounding.graded`` lists those of boxes and points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any, Final

from mcompose.errors import RequestError
from mcompose.evaluate.extraction import cider, edit_distance, scrm, scrm_published, text_overlap
from mcompose.evaluate.extraction.teds import check_html_table, check_table, has_html_table, has_table, teds

__all__ = ["GRADED", "GROUPS", "Graded", "mean"]

_TOLERANCES: Final = ("strict", "slight", "high", "em")
_SCRM: Final[dict[str, dict[str, Any]]] = {
    "scrm": {},
    "scrm_paper": {"paper": True},
    "scrm_paper_titled": {"paper": True, "title": True},
}


def mean(values: Sequence[float]) -> float:
    """Returns mean of all values.

    Args:
        values: One per question.

    Returns:
        Their mean.

    Raises:
        ValueError: There are no questions.
    """
    if not values:
        raise ValueError("A mean needs at least one item.")
    return sum(values) / len(values)


@dataclass(frozen=True)
class Graded:
    """A metric whose values are shares.

    Args:
        score: Output and reference to a value; an output that cannot be read has the worst.
        needs: Packages of the extra.
        together: Values of all questions to one figure.
        texts: Instead of ``together``: outputs and accepted answers of all questions to one figure.
        check: Raises an error for a reference that cannot be read.
        readable: Whether an output can be read; None: every text can.
        data: Raises an error when data that it needs are not on this machine.
        less_is_better: Whether 0 is best.
        short: Whether answers are a word or a number, not a table or a page.
    """

    score: Callable[[str, str], float]
    needs: tuple[str, ...] = ("rapidfuzz",)
    together: Callable[[Sequence[float]], float] = mean
    texts: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None
    check: Callable[[str], None] | None = None
    readable: Callable[[str], bool] | None = None
    data: Callable[[], Any] | None = None
    less_is_better: bool = False
    short: bool = False

    @property
    def worst(self) -> float:
        """What an answer without a value counts as."""
        return 1.0 if self.less_is_better else 0.0

    @property
    def best(self) -> float:
        """What a right answer has."""
        return 1.0 - self.worst

    def value(self, output: str, accepted: Sequence[str]) -> float | None:
        """Value of one answer: the best over the accepted answers.

        Args:
            output: What the model wrote.
            accepted: What it should be; at least one.

        Returns:
            The value; None when the output cannot be read, which counts as the worst.

        Raises:
            BadReferenceError: An accepted answer cannot be read.
        """
        values = [self.score(output, reference) for reference in accepted]
        if self.readable is not None and not self.readable(output):
            return None
        return min(values) if self.less_is_better else max(values)

    def refuse_missing(self, name: str) -> None:
        """Says at once what is not installed.

        Args:
            name: The metric's name, for the message.

        Raises:
            RequestError: A package or its data are missing.
        """
        missing = [package for package in self.needs if find_spec(package) is None]
        if missing:
            raise RequestError(
                f"The metric '{name}' needs {' and '.join(missing)}, which this installation lacks.",
                hint="Install it: pip install 'mcompose[extraction]'.",
            )
        if self.data is not None:
            self.data()


def _scrm() -> dict[str, Graded]:
    """Returns every tolerance, for easy and hard charts, ours and as published, there with and without a title line."""
    made = {}
    for prefix, options in _SCRM.items():
        paper = bool(options)
        readable = partial(scrm_published.has_rows, title="title" in options) if paper else scrm.has_facts
        check = scrm.check_published if paper else scrm.check_chart
        for suffix, name in product(("", "_hard"), _TOLERANCES):
            tolerance = "strict" if name == "em" else name
            score = partial(scrm.scrm_similarity, tolerance=tolerance, hard=bool(suffix), **options)
            ap = scrm.published_average_precision if paper else scrm.average_precision
            together = scrm.exact_share if name == "em" else ap
            made[f"{prefix}_{name}{suffix}"] = Graded(score, together=together, check=check, readable=readable)
    return made


def _teds() -> dict[str, Graded]:
    made = {}
    for paper, prefix in ((False, "teds"), (True, "teds_paper")):
        check = check_html_table if paper else check_table
        readable = has_html_table if paper else has_table
        for structure_only, suffix in ((False, ""), (True, "_structure")):
            score = partial(teds, structure_only=structure_only, paper=paper)
            made[prefix + suffix] = Graded(score, ("apted", "lxml", "rapidfuzz"), check=check, readable=readable)
    return made


def _of_words() -> dict[str, Graded]:
    worded = partial(Graded, check=text_overlap.check_words)
    return {
        "bleu": worded(text_overlap.bleu, ("sacrebleu",), texts=text_overlap.corpus_bleu),
        "bleu_sentence": worded(text_overlap.bleu, ("sacrebleu",)),
        "bleu_got": worded(partial(text_overlap.nltk_bleu, swapped=True), ("nltk",)),
        "meteor": worded(text_overlap.meteor, ("nltk",)),
        "meteor_got": worded(partial(text_overlap.meteor, swapped=True), ("nltk",)),
        "meteor_wordnet": worded(text_overlap.meteor_wordnet, ("nltk",), data=text_overlap.find_wordnet),
        "cider": worded(cider.cider_of_one, (), texts=cider.corpus_cider),
        "word_precision": worded(text_overlap.word_precision, ()),
        "word_precision_got": worded(partial(text_overlap.word_precision, swapped=True), ()),
        "word_recall": worded(text_overlap.word_recall, ()),
        "word_f1": worded(text_overlap.word_f1, ()),
    }


GRADED: Final[dict[str, Graded]] = {
    **_scrm(),
    **_teds(),
    "edit_similarity": Graded(edit_distance.edit_similarity),
    "edit_distance": Graded(edit_distance.normalised_edit_distance, less_is_better=True),
    **_of_words(),
    "anls": Graded(edit_distance.anls, short=True),
}
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    prefix + suffix: tuple(f"{prefix}_{name}{suffix}" for name in _TOLERANCES)
    for prefix, suffix in product(_SCRM, ("", "_hard"))
}
"""One name in a task file for several metrics."""
