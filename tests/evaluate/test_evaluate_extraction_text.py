"""Edits, overlap of words and relaxed accuracy, against values worked out by hand and against other packages."""

from __future__ import annotations

import math

import nltk.translate.meteor_score
import pytest
import sacrebleu
from anls_star import anls_score
from hypothesis import given, settings
from hypothesis import strategies as st

from mcompose.evaluate.extraction import (
    anls,
    bleu,
    corpus_bleu,
    edit_similarity,
    meteor,
    meteor_wordnet,
    nltk_bleu,
    normalised_edit_distance,
    relaxed_match,
    word_f1,
    word_precision,
    word_recall,
)
from mcompose.evaluate.extraction.relaxed import number_in
from mcompose.evaluate.extraction.text_overlap import words_of

# The worked example in the documentation of NLTK's METEOR and BLEU.
GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
WANTED = "It is a guide to action that ensures that the military will forever heed Party commands"
TEXTS = st.text(st.sampled_from("abc é−5.\n中"), max_size=12)


@pytest.mark.parametrize(
    ("output", "reference", "distance"),
    [
        ("kitten", "sitting", 3 / 7),  # k-s, e-i, +g
        ("", "", 0.0),
        ("", "abc", 1.0),
        ("abc", "", 1.0),
        ("naïve", "naive", 1 / 5),
        ("一二三", "一三", 1 / 3),
    ],
)
def test_evaluate_edit_distance_by_hand(output, reference, distance) -> None:
    assert normalised_edit_distance(output, reference) == pytest.approx(distance)
    assert edit_similarity(output, reference) == pytest.approx(1 - distance)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_evaluate_edit_distance_is_the_one_of_nltk_and_symmetric(left, right) -> None:
    longer = max(len(left), len(right)) or 1
    assert normalised_edit_distance(left, right) == nltk.edit_distance(left, right) / longer
    assert normalised_edit_distance(left, right) == normalised_edit_distance(right, left)


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("Tokyo", "tokyo", 1.0),
        ("tokio", "tokyo", 0.8),  # one of five
        ("ab", "ax", 0.0),  # half is wrong: not less than the threshold
        ("abc", "abx", 2 / 3),
        ("", "x", 0.0),
        ("  new   york ", "New York", 1.0),
    ],
)
def test_evaluate_anls_by_hand(output, reference, score) -> None:
    assert anls(output, reference) == pytest.approx(score)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_evaluate_anls_agrees_with_its_package(output, reference) -> None:
    if not output.strip() or not reference.strip():
        return  # the package gives an empty text a score of its own
    theirs = anls_score(reference, output)
    # At the threshold itself the paper says 0 (only less than half may be wrong), the package 0.5.
    assert anls(output, reference) == pytest.approx(0.0 if theirs == 0.5 else theirs)


def test_evaluate_words_are_cut_at_spaces_and_chinese_characters() -> None:
    assert words_of(" A b-c,\n中文2024年 kana カナ") == ["A", "b-c,", "中", "文", "2024", "年", "kana", "カ", "ナ"]


def test_evaluate_sets_of_words_by_hand() -> None:
    # {the, cat, sat} of the output, {the, cat, ran, far} of the reference: two are shared
    output, reference = "the cat sat the cat", "the cat ran far"
    assert word_precision(output, reference) == pytest.approx(2 / 3)
    assert word_recall(output, reference) == pytest.approx(2 / 4)
    assert word_f1(output, reference) == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert word_precision(output, reference, swapped=True) == word_recall(output, reference)
    assert word_precision("", "a") == word_recall("", "a") == word_f1("", "a") == 0.0


def test_evaluate_meteor_of_the_published_example() -> None:
    # 12 words match in 6 pieces: P = 12/18, R = 12/16, F = P R / (0.9 P + 0.1 R), times 1 - 0.5 * (6/12) ** 3
    assert meteor(GUIDE, WANTED) == pytest.approx(0.5 / (0.9 * 12 / 18 + 0.1 * 12 / 16) * (1 - 0.0625))
    assert round(meteor(GUIDE, WANTED), 4) == 0.6944
    # Six words, all equal and in one piece: 1 - 0.5 * (1 / 6) ** 3
    assert meteor("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1 - 0.5 / 216)
    # 'running' and 'run' share their stem; P = 2/2, R = 2/3, F = P R / (0.9 P + 0.1 R), one chunk of two words
    fmean = (2 / 3) / (0.9 * 1 + 0.1 * 2 / 3)
    assert meteor("dogs running", "dog run fast") == pytest.approx(fmean * (1 - 0.5 * (1 / 2) ** 3))
    assert meteor("", "a") == meteor("b", "a") == 0.0


def test_evaluate_meteor_counts_synonyms_only_when_asked(monkeypatch) -> None:
    class Lemma:
        def __init__(self, name):
            self._name = name

        def name(self):
            return self._name

    class Synset:
        def lemmas(self):
            return [Lemma("car"), Lemma("auto")]

    class WordNet:
        def synsets(self, word):
            return [Synset()] if word in {"car", "auto"} else []

        def ensure_loaded(self):
            pass

    monkeypatch.setattr("nltk.corpus.wordnet", WordNet())
    # 1 of 2 words is equal, and with synonyms 2 of 2
    assert meteor("red car", "red auto") == pytest.approx(0.5 * (1 - 0.5))
    assert meteor_wordnet("red car", "red auto") == pytest.approx(1 - 0.5 / 8)


def test_evaluate_bleu_by_hand() -> None:
    # "a b c d e" against "a b c d f": 4/5, 3/4, 2/3, 1/2 of the n-grams, and equal length
    expected = math.exp((math.log(4 / 5) + math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2)) / 4)
    assert bleu("a b c d e", "a b c d f") == pytest.approx(expected)
    assert nltk_bleu("a b c d e", "a b c d f") == pytest.approx(expected)
    # "a b c d" lacks one word of five: every n-gram is right, brevity exp(1 - 5/4)
    assert bleu("a b c d", "a b c d e") == pytest.approx(math.exp(-1 / 4))
    # The other way round: 4/5, 3/4, 2/3, 1/2, and no penalty
    assert nltk_bleu("a b c d", "a b c d e", swapped=True) == pytest.approx(expected)
    assert bleu("", "a") == nltk_bleu("", "a") == 0.0


def test_evaluate_bleu_of_few_words_and_of_chinese() -> None:
    assert bleu("one", "one") == bleu("中文", "中文") == 1.0
    assert corpus_bleu(["one", "two"], [["one"], ["two"]]) == 1.0
    # 中 文 字 against 中 文: 2/3 and 1/2; 0 of one 3-gram, smoothed to 1 / 2; the fourth order does not exist
    assert bleu("中文字", "中文") == pytest.approx((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))


def test_evaluate_corpus_bleu_is_sacrebleu_and_no_mean() -> None:
    outputs, wanted = [GUIDE, "the cat sat on the mat today"], [WANTED, "the cat lay on the mat today"]
    together = corpus_bleu(outputs, [[one] for one in wanted])
    assert together == pytest.approx(sacrebleu.corpus_bleu(outputs, [wanted]).score / 100)
    assert together != pytest.approx(sum(map(bleu, outputs, wanted)) / 2)
    several = corpus_bleu(outputs, [[wanted[0], GUIDE], [wanted[1]]])
    assert several == pytest.approx(sacrebleu.corpus_bleu(outputs, [wanted, [GUIDE, None]]).score / 100)
    assert together < several < 1


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS)
def test_evaluate_overlaps_are_shares_and_whole_for_equal_texts(output, reference) -> None:
    for metric in (bleu, nltk_bleu, meteor, word_precision, word_recall, word_f1, edit_similarity, anls):
        assert 0 <= metric(output, reference) <= 1
    if words := words_of(reference):
        for metric in (bleu, word_precision, word_recall, word_f1, edit_similarity, anls):
            assert metric(reference, reference) == pytest.approx(1)
        assert meteor(reference, reference) == pytest.approx(1 - 0.5 / len(words) ** 3)
    assert word_f1(output, reference) == word_f1(reference, output)


@pytest.mark.parametrize(
    ("output", "reference", "right"),
    [
        ("105", "100", True),  # exactly 5 %
        ("105.1", "100", False),
        ("95", "100", True),
        ("-95", "-100", True),
        ("100", "-100", False),  # a negative label is no licence
        ("0", "0.0", True),
        ("0.0001", "0", False),
        ("1,050", "1000", True),
        ("5%", "0.05", True),
        ("5", "5%", False),
        ("Yes ", "yes", True),
        ("about 100", "100", False),
        ("", "100", False),
        ("nan", "nan", True),  # words
        ("inf", "1", False),
        ("\u22125", "-5", True),
        ("0.15", "0.142857142857142857", True),  # 5 % more than a seventh is 0.15
    ],
)
def test_evaluate_relaxed_accuracy_by_hand(output, reference, right) -> None:
    assert relaxed_match(output, reference) is right


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.5", 1234.5), ("-3", -3), (".5", 0.5), ("5.", 5), ("2e3", 2000), ("+7", 7)]
    + [(text, None) for text in ("", ".", "-", "1,23", "1_000", "1e999", "e5", "٣", "NaN", "1 2")],
)
def test_evaluate_numbers_are_numbers_and_nothing_else(text, value) -> None:
    assert number_in(text) == value
