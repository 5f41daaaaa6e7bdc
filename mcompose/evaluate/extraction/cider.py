"""CIDEr-D of captions: weighted n-grams that an answer shares with its references, over all answers together.

An n-gram (one to four words) weighs its count times log(questions / questions whose references have it). For each n,
an answer and a reference are compared by the cosine of their vectors, the answer's entries cut to the reference's, and
multiplied by exp(-(difference in length)^2 / 72); the mean over n and references, times 10, is the value of a question.

Paper: Vedantam et al. 2015, arXiv 1411.5726, in the form CIDEr-D of the COCO caption evaluation (pycocoevalcap).
Differs: pycocoevalcap (last release 2020) is not used, since it runs Stanford's tokenizer in Java; words here are in
lower case, without punctuation, and cut at "n't" and "'s" as there; brackets and the last full stop of abbreviations
are no words here. On equal words the values are equal (a test compares them). As there, the length is counted in pairs
of words, and a single question, which has no rare words, has the value 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

__all__ = ["caption_words", "cider_of_one", "corpus_cider"]

_ORDERS: Final = (1, 2, 3, 4)
_SPREAD: Final = 6.0  # of lengths
_WORD: Final = re.compile(r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.,]\w+|(?<=\d):\d+)*|[%&$/#+=*@]")

_Ngrams: TypeAlias = Counter[tuple[str, ...]]


def caption_words(text: str) -> list[str]:
    """Returns the words of a caption in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def corpus_cider(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the mean CIDEr-D of all answers; n-grams are weighed by all questions' references.

    Args:
        outputs: What the model wrote, per question.
        references: Per question, the accepted answers.

    Returns:
        0 to 10.
    """
    wanted = [[_ngrams(text) for text in accepted] for accepted in references]
    found_in = Counter(ngram for accepted in wanted for ngram in dict.fromkeys(n for one in accepted for n in one))
    weights = {ngram: math.log(len(outputs)) - math.log(count) for ngram, count in found_in.items()}
    rare = math.log(len(outputs))
    values = [
        sum(_similarity(_ngrams(output), one, weights, rare) for one in accepted) / len(accepted)
        for output, accepted in zip(outputs, wanted, strict=True)
    ]
    return 10 * sum(values) / len(values)


def cider_of_one(output: str, reference: str) -> float:
    """Returns the similarity of one answer and one reference, with every n-gram of equal weight.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1; 1 for equal texts of four words or more.
    """
    return _similarity(_ngrams(output), _ngrams(reference), {}, 1.0)


def _ngrams(text: str) -> _Ngrams:
    words = caption_words(text)
    return Counter(tuple(words[start : start + n]) for n in _ORDERS for start in range(len(words) - n + 1))


def _similarity(given: _Ngrams, wanted: _Ngrams, weights: Mapping[tuple[str, ...], float], rare: float) -> float:
    apart = _length(given) - _length(wanted)
    total = 0.0
    for n in _ORDERS:
        vectors = [{g: k * weights.get(g, rare) for g, k in one.items() if len(g) == n} for one in (given, wanted)]
        shared = sum(min(value, vectors[1].get(g, 0.0)) * vectors[1].get(g, 0.0) for g, value in vectors[0].items())
        norms = _norm(vectors[0].values()) * _norm(vectors[1].values())
        total += shared / norms if norms else shared
    return total / len(_ORDERS) * math.exp(-(apart**2) / (2 * _SPREAD**2))


def _length(ngrams: _Ngrams) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))
