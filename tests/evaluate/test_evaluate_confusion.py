"""Confusion matrix and attention mass, against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from sklearn.metrics import confusion_matrix as reference_matrix

from mcompose.errors import RequestError
from mcompose.evaluate import attention_mass, confusion_matrix

CLASSES = ("none", "table", "chart")
PAIRS = [("none", "none")] * 3 + [("none", "chart"), ("table", "table"), ("table", "none"), (None, "chart")]


def test_evaluate_confusion_by_hand() -> None:
    made = confusion_matrix(PAIRS, classes=CLASSES)
    assert made.counts == ((3, 0, 1), (1, 1, 0), (0, 0, 0))
    assert (made.total, made.ignored, made.accuracy) == (6, 1, 4 / 6)
    assert made.recall == {"none": 3 / 4, "table": 1 / 2, "chart": None}
    assert made.precision == {"none": 3 / 4, "table": 1.0, "chart": 0.0}
    assert json.loads(json.dumps(made.to_json()))["counts"] == [[3, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_evaluate_confusion_as_text() -> None:
    assert confusion_matrix(PAIRS, classes=CLASSES).to_text().splitlines() == [
        "label       none   table  chart  recall",
        "none           3       0      1   75.0%",
        "table          1       1      0   50.0%",
        "chart          0       0      0       -",
        "precision  75.0%  100.0%   0.0%   66.7%",
    ]
    assert confusion_matrix([], classes=CLASSES).accuracy is None


def test_evaluate_confusion_refuses_unknown_and_double_classes() -> None:
    with pytest.raises(RequestError, match=r"Pair 1 names 'tabel'.*Did you mean 'table'"):
        confusion_matrix([("none", "none"), ("none", "tabel")], classes=CLASSES)
    with pytest.raises(RequestError, match="named twice"):
        confusion_matrix([], classes=["a", "a"])


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1))
def test_evaluate_confusion_is_the_one_of_scikit_learn(pairs) -> None:
    labels, predicted = zip(*pairs, strict=True)
    made = confusion_matrix(pairs, classes=CLASSES)
    assert [list(row) for row in made.counts] == reference_matrix(labels, predicted, labels=CLASSES).tolist()
    assert made.accuracy == accuracy_score(labels, predicted)


# Two samples, one head and a second that is the first with its keys turned round; the third row of sample 1 is masked.
ATTENTION = [
    [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.2, 0.3, 0.5]],
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]],
]


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_evaluate_attention_mass_by_hand(kind) -> None:
    attention = kind(np.stack([np.array(ATTENTION), np.array(ATTENTION)[..., ::-1]], 1).tolist())
    assert tuple(attention.shape) == (2, 2, 3, 3)
    queries, keys = kind([[0, 1, 1], [0, 1, 1]]), kind([[True, False, False], [True, False, False]])
    made = attention_mass(attention, queries=queries, keys=keys)
    # sample 0: (0.25 + 0.2) / 2 on key 0, and (0 + 0.5) / 2 of the turned head; sample 1: 0.5 of one row that has any
    np.testing.assert_allclose(np.asarray(made), [[0.225, 0.25], [0.5, 0.0]], rtol=1e-6)
    every = attention_mass(attention, queries=queries, keys=kind([[1, 1, 1], [1, 1, 1]]))
    np.testing.assert_allclose(np.asarray(every), 1)


def test_evaluate_attention_mass_sums_to_one_over_a_partition() -> None:
    attention = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    queries = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    keys = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    share = attention_mass(attention, queries=queries, keys=keys)
    rest = attention_mass(attention, queries=queries, keys=1 - keys)
    torch.testing.assert_close(share + rest, torch.ones(2, 3))
    torch.testing.assert_close(share[0], attention[0, :, 2:4][..., [0, 2]].sum(-1).mean(-1))
    assert share[1].tolist() == [0, 0, 0]


def test_evaluate_attention_mass_of_half_precision_keeps_its_digits() -> None:
    attention = torch.full((1, 1, 4096, 4096), 1 / 4096).bfloat16()
    queries, keys = torch.zeros(1, 4096), torch.zeros(1, 4096)
    queries[0, 7] = keys[0, :1001] = 1
    assert attention_mass(attention, queries=queries, keys=keys).item() == pytest.approx(1001 / 4096, rel=1e-6)


def test_evaluate_attention_mass_refuses_what_has_none() -> None:
    attention = torch.tensor(ATTENTION)[:, None]
    one = torch.ones(2, 3)
    with pytest.raises(RequestError, match="Sample 1 has no position"):
        attention_mass(attention, queries=torch.tensor([[0, 0, 1], [0, 0, 1]]), keys=one)
    with pytest.raises(RequestError, match=r"The keys have shape \(3, 2\)"):
        attention_mass(attention, queries=one, keys=one.T)
    with pytest.raises(RequestError, match="attends to 2"):
        attention_mass(attention[..., :2], queries=one, keys=one)
