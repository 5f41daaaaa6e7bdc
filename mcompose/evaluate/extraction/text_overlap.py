"""Overlap of words and word sequences: BLEU, METEOR, and precision, recall and F over sets of words.

Words are what spaces separate; every Chinese or Japanese character is a word of its own.

Paper: BLEU, Papineni et al. 2002, by sacrebleu; METEOR, Lavie and Agarwal 2007, by NLTK; sets of words as in Nougat,
arXiv 2308.13418.
Differs: (1) METEOR matches equal words and equal stems. Synonyms need the WordNet data, which no maintained package
carries and nothing here downloads: ``meteor_wordnet`` takes them from an NLTK corpus that is on the disk already, and
scores a little higher. (2) Chinese is cut into characters; the published document evaluations use jieba. (3) A text of
fewer than four words has BLEU over the orders that it has, so that equal texts have 1. (4) The evaluation script of
GOT-OCR2.0, arXiv 2409.01704, which the documents of Chimera were presumably scored by, hands label and answer over in
each other's place: what it calls precision is the recall. ``swapped=True`` does the same (metrics ``..._got``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from mcompose.errors import RequestError
from mcompose.evaluate.extraction.reading_errors import BadReferenceError

__all__ = [
    "bleu",
    "check_words",
    "corpus_bleu",
    "find_wordnet",
    "meteor",
    "meteor_wordnet",
    "nltk_bleu",
    "word_f1",
    "word_precision",
    "word_recall",
    "words_of",
]

_CHARACTER: Final = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_WORD: Final = re.compile(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\S)+")


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in order.

    Args:
        text: Any text.

    Returns:
        What spaces separate, with Chinese and Japanese characters apart.
    """
    return _WORD.findall(text)


def check_words(reference: str) -> None:
    """Refuses a reference without words.

    Args:
        reference: What an answer should be.

    Raises:
        BadReferenceError: It has none.
    """
    if not words_of(reference):
        raise BadReferenceError("The reference has no words.")


def bleu(output: str, reference: str) -> float:
    """BLEU of one text, smoothed (exponential) and over the orders that the text has.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1.
    """
    return _fraction(_sacrebleu([reference]).sentence_score(output, [reference]).score)


def corpus_bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of all texts together: n-grams are counted over all before they are divided.

    Args:
        outputs: What the model wrote, per question.
        references: Per question, the accepted answers.

    Returns:
        0 to 1.
    """
    most = max(len(accepted) for accepted in references)
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    metric = _sacrebleu([text for row in references for text in row])
    return _fraction(metric.corpus_score(list(outputs), streams).score)


def nltk_bleu(output: str, reference: str, *, swapped: bool = False) -> float:
    """BLEU as NLTK computes it by default: words by spaces, four orders, no smoothing.

    Args:
        output: What the model wrote.
        reference: What it should be.
        swapped: Take each for the other.

    Returns:
        0 to 1; nearly 0 when no sequence of four words is shared.
    """
    from nltk.translate.bleu_score import sentence_bleu  # noqa: PLC0415 - an extra

    hypothesis, wanted = _in_order(output, reference, swapped=swapped)
    if not hypothesis or not wanted:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of every text that shares no four words
        score: Any = sentence_bleu([wanted], hypothesis)
    return float(score)


def meteor(output: str, reference: str, *, swapped: bool = False) -> float:
    """METEOR over equal words and equal stems.

    Args:
        output: What the model wrote.
        reference: What it should be.
        swapped: Take each for the other.

    Returns:
        0 to 1. Equal texts of n words have 1 - 0.5 / n^3: the penalty for breaks counts the one piece as a break.
    """
    return _meteor(output, reference, synonyms=_NoSynonyms(), swapped=swapped)


def meteor_wordnet(output: str, reference: str) -> float:
    """METEOR with all three stages: equal words, equal stems, synonyms of WordNet.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1.

    Raises:
        RequestError: The WordNet data are not on this machine.
    """
    return _meteor(output, reference, synonyms=find_wordnet(), swapped=False)


def find_wordnet() -> Any:
    """WordNet, out of NLTK's data folders.

    Returns:
        NLTK's reader.

    Raises:
        RequestError: The data are not on this machine.
    """
    from nltk.corpus import wordnet  # noqa: PLC0415 - an extra

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise RequestError(
            "METEOR with synonyms needs NLTK's WordNet data, which are not on this machine.",
            hint="Fetch them once with `python -m nltk.downloader wordnet` (or set NLTK_DATA), or use 'meteor'.",
        ) from error
    return wordnet


def word_precision(output: str, reference: str, *, swapped: bool = False) -> float:
    """Returns share of the output's different words that the reference has, too.

    Args:
        output: What the model wrote.
        reference: What it should be.
        swapped: Take each for the other, which is the recall.

    Returns:
        0 to 1; 0 for an output without words.
    """
    given, wanted = (set(words) for words in _in_order(output, reference, swapped=swapped))
    return len(given & wanted) / len(given) if given else 0.0


def word_recall(output: str, reference: str) -> float:
    """Returns share of the reference's different words that the output has, too.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1.
    """
    return word_precision(output, reference, swapped=True)


def word_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over sets of words.

    Args:
        output: What the model wrote.
        reference: What it should be.

    Returns:
        0 to 1.
    """
    given, wanted = set(words_of(output)), set(words_of(reference))
    return 2 * len(given & wanted) / (len(given) + len(wanted)) if given or wanted else 0.0


class _NoSynonyms:
    """Stands where NLTK expects WordNet."""

    def synsets(self, _: str) -> list[Any]:
        return []


def _meteor(output: str, reference: str, *, synonyms: Any, swapped: bool) -> float:
    from nltk.translate.meteor_score import single_meteor_score  # noqa: PLC0415 - an extra

    hypothesis, wanted = _in_order(output, reference, swapped=swapped)
    return float(single_meteor_score(wanted, hypothesis, wordnet=synonyms))


def _in_order(output: str, reference: str, *, swapped: bool) -> tuple[list[str], list[str]]:
    return (words_of(reference), words_of(output)) if swapped else (words_of(output), words_of(reference))


def _sacrebleu(references: Sequence[str]) -> Any:
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 - an extra

    chinese: Callable[[str], Any] = re.compile(_CHARACTER).search
    return BLEU(tokenize="zh" if any(map(chinese, references)) else "13a", effective_order=True)


def _fraction(percent: float) -> float:
    return min(percent / 100, 1.0)  # sacrebleu says 100.00000000000004 of equal texts
