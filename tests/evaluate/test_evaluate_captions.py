"""CIDEr-D: by hand, against pycocoevalcap where it is installed (`pip install --no-deps`), and in a task file."""

import json
import math
import random

import pytest

from mcompose.evaluate import load_task
from mcompose.evaluate.extraction.cider import caption_words, cider_of_one, corpus_cider
from mcompose.evaluate.results import Prediction, figures


def test_words_of_captions_by_hand():
    assert caption_words("The dog's t-shirt doesn't fit, does it?") == [
        "the", "dog", "'s", "t-shirt", "does", "n't", "fit", "does", "it",
    ]  # fmt: skip
    assert caption_words('At 5:30 pm, "3.5" of 1,000 -- (20 %)...') == [
        "at",
        "5:30",
        "pm",
        "3.5",
        "of",
        "1,000",
        "20",
        "%",
    ]
    assert caption_words("") == []


def test_two_questions_by_hand():
    # Every n-gram is in one of two references: weight log 2, which the cosine cancels. "a b c" against "a b d":
    # one word of three twice shared: 2/3; pairs 1/2; triples 0; no fours. Equal lengths.
    # "e f g h" against itself: 1 for every n.
    found = corpus_cider(["a b c", "e f g h"], [["a b d"], ["e f g h"]])
    assert found == pytest.approx(10 * ((2 / 3 + 1 / 2) / 4 + 1) / 2)


def test_length_and_repetition_cost_by_hand():
    # "e f g h h": counts are cut to the reference's, and one pair more: exp(-1 / 72).
    shares = [4 / math.sqrt(7 * 4), 3 / math.sqrt(4 * 3), 2 / math.sqrt(3 * 2), 1 / math.sqrt(2 * 1)]
    value = sum(shares) / 4 * math.exp(-1 / 72)
    found = corpus_cider(["a b c d", "e f g h h"], [["a b c d"], ["e f g h"]])
    assert found == pytest.approx(10 * (1 + value) / 2)
    assert cider_of_one("e f g h h", "e f g h") == pytest.approx(value)
    assert cider_of_one("e f g h", "e f g h") == pytest.approx(1.0)


def test_words_of_every_reference_weigh_nothing():
    # "the" is in both references: log 2 - log 2 = 0; "cat" alone counts.
    assert corpus_cider(["the", "the"], [["the cat"], ["the dog"]]) == 0.0
    assert corpus_cider(["the cat"], [["the cat"]]) == 0.0  # one question has no rare words


def captions(seed):
    """Outputs, and one to five references each, of few words so that many are shared."""
    draw = random.Random(seed)
    words = [
        "a",
        "the",
        "cat",
        "dog",
        "man",
        "rides",
        "sits",
        "on",
        "red",
        "big",
        "horse",
        "street",
        "near",
        "two",
        "it",
        "'s",
    ]

    def text():
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, 12)))

    return [text() for _ in range(30)], [[text() for _ in range(draw.randint(1, 5))] for _ in range(30)]


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_pycocoevalcap(seed):
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    outputs, references = captions(seed)
    given = {n: [output] for n, output in enumerate(outputs)}
    expected, _ = cider.Cider().compute_score(dict(enumerate(references)), given)
    assert corpus_cider(outputs, references) == pytest.approx(float(expected), rel=1e-9)


def test_captions_in_a_task_file(tmp_path):
    head = {"task": "captions", "version": 1, "modalities": ["text"], "metric": "cider"}
    text = {"modality": "text", "text": "a picture"}
    answers = [["a cat sits here", "the cat is on it"], ["two dogs run fast"]]
    rows = [{"inputs": [text], "question": "Caption it.", "answer": answer} for answer in answers]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, [head, *rows])))
    task = load_task(path)
    outputs = ["A cat sits here.", "a dog"]
    made = [
        Prediction(item.id, "", output, item.answer, right=False, left_out=(), seen=1, verdicts={"cider": 0.0},
                   accepted=item.accepted)
        for item, output in zip(task.items, outputs, strict=True)
    ]  # fmt: skip
    (row,) = figures(task, made)
    assert (row.metric, row.n) == ("cider", 2)
    assert row.value == pytest.approx(corpus_cider(outputs, answers))
    assert task.max_new_tokens == 512
