"""Extraction metrics in task files: what is scored, put together, and refused before a checkpoint is loaded."""

from __future__ import annotations

import json
import sys

import pytest
from mini_sets import Scripted

from mcompose.errors import RequestError, UnknownNameError
from mcompose.evaluate import EvaluateOptions, evaluate, evaluate_task, load_task
from mcompose.evaluate.extraction import GRADED, GROUPS, corpus_bleu
from mcompose.evaluate.metrics import rule_for
from mcompose.evaluate.results import figures

TABLE = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>dd</td></tr></table>"
CHART = "Year\tSales\n2019\t100\n2020\t120"


def write(folder, answers, **header):
    head = {"task": "read", "version": 1, "modalities": ["text"], "chance": 0.25} | header
    rows = [
        {"id": f"q{i}", "inputs": [], "question": f"question {i}", "answer": answer} for i, answer in enumerate(answers)
    ]
    path = folder / "read.jsonl"
    path.write_text("\n".join(map(json.dumps, (head, *rows))) + "\n")
    return path


def results(folder, answers, outputs, **header):
    task = load_task(write(folder, answers, **header))
    made = evaluate_task(Scripted(outputs), task, options=EvaluateOptions(template="plain"))
    return made, {row.metric: row for row in figures(task, made)}


def test_evaluate_several_metrics_of_the_same_answers(tmp_path) -> None:
    outputs = [TABLE, TABLE.replace("dd", "dx"), "no table at all"]
    metrics = ["teds", "teds_structure", "exact_match", "edit_distance"]
    subject = Scripted(outputs)
    task = load_task(write(tmp_path, [TABLE] * 3, metrics=metrics))
    made = evaluate_task(subject, task, options=EvaluateOptions(template="plain", save=tmp_path / "out"))
    assert len(subject.prompts) == 3
    rows = {row.metric: row for row in figures(task, made)}
    assert list(rows) == metrics
    assert rows["teds"].value == pytest.approx((1 + (1 - 0.5 / 7) + 0) / 3)
    assert (rows["teds"].unparsed, rows["teds"].n, rows["teds"].chance) == (1, 3, 0)
    assert rows["teds_structure"].value == pytest.approx(2 / 3)
    assert (rows["exact_match"].value, rows["exact_match"].unparsed, rows["exact_match"].chance) == (1 / 3, 0, 0.25)
    assert 0 < rows["edit_distance"].value < 1
    assert [p.right for p in made] == [True, False, False]
    kept = [json.loads(line) for line in (tmp_path / "out" / "read.jsonl").read_text().splitlines()[1:]]
    assert [row["verdicts"]["teds"] for row in kept] == [1.0, pytest.approx(1 - 0.5 / 7), None]


def test_evaluate_metrics_are_scored_anew_over_kept_answers(tmp_path) -> None:
    options = EvaluateOptions(template="plain", save=tmp_path / "out")
    first = load_task(write(tmp_path, [CHART, CHART], metric="scrm"))
    evaluate_task(Scripted([CHART, "x"]), first, options=options)
    assert first.metrics == GROUPS["scrm"] == ("scrm_strict", "scrm_slight", "scrm_high", "scrm_em")
    silent = Scripted([])
    more = load_task(write(tmp_path, [CHART, CHART], metric="scrm_strict", also=["edit_similarity"]))
    made = evaluate_task(silent, more, options=options)
    assert silent.prompts == []
    assert [list(p.verdicts) for p in made] == [["scrm_strict", "edit_similarity"]] * 2


def test_evaluate_scrm_is_an_average_precision_and_no_mean(tmp_path) -> None:
    # Of the second table one fact of two is right: 1 / 3, which reaches no threshold; 105 is 5 % off
    outputs = [CHART, CHART.replace("100", "999"), CHART.replace("100", "105"), "?"]
    _, rows = results(tmp_path, [CHART] * 4, outputs, metrics=["scrm"])
    assert {name: row.value for name, row in rows.items()} == {
        "scrm_strict": 1 / 4,
        "scrm_slight": 2 / 4,
        "scrm_high": 2 / 4,
        "scrm_em": 1 / 4,
    }
    assert {row.unparsed for row in rows.values()} == {1}


def test_evaluate_published_scrm_is_asked_for_by_name(tmp_path) -> None:
    label, titled = (
        CHART.replace("\t", "\\t").replace("\n", "\\n"),
        "Title\\n" + CHART.replace("\t", "\\t").replace("\n", "\\n"),
    )
    _, rows = results(
        tmp_path, [label, label], [label, titled], metrics=["scrm_paper", "scrm_paper_titled_hard", "scrm_em"]
    )
    assert [row.value for row in rows.values()] == [0.5] * 8 + [1.0]
    assert [row.unparsed for row in rows.values()] == [1] * 4 + [0] * 5


def test_evaluate_bleu_of_a_task_is_of_all_texts_together(tmp_path) -> None:
    wanted, outputs = ["a b c d e", "f g h i"], ["a b c d x", "f g h i"]
    _, rows = results(
        tmp_path, wanted, outputs, metrics=["joint_bleu", "bleu_sentence", "meteor", "word_precision_got"]
    )
    assert rows["joint_bleu"].value == pytest.approx(corpus_bleu(outputs, [[one] for one in wanted]))
    assert rows["joint_bleu"].value != pytest.approx(rows["bleu_sentence"].value)
    assert rows["word_precision_got"].value == pytest.approx((4 / 5 + 1) / 2)


def test_evaluate_the_best_of_several_answers_counts(tmp_path) -> None:
    answers = [["seven", "7"], "ten", ["big", "large"]]
    header = {"metrics": ["anls", "edit_distance", "relaxed_accuracy", "exact_match"]}
    made, rows = results(tmp_path, answers, ["7", "9.9", "larg"], **header)
    assert rows["anls"].value == pytest.approx((1 + 0 + 0.8) / 3)
    assert rows["edit_distance"].value == pytest.approx((0 + 1 + 0.2) / 3)
    assert rows["relaxed_accuracy"].value == rows["exact_match"].value == 1 / 3
    assert made[0].accepted == ("7",)
    assert made[0].right is True


def test_evaluate_empty_outputs_have_the_worst_value_of_every_metric(tmp_path) -> None:
    published = "h\\tv\\nr\\t1"
    for name, entry in GRADED.items():
        reference = TABLE if "teds" in name else published
        _, rows = results(tmp_path, [reference], [""], metrics=["exact_match", name]) if entry.data is None else (0, {})
        assert all(row.value == entry.worst for row in rows.values() if row.metric == name)


def test_evaluate_long_answers_may_be_long(tmp_path) -> None:
    assert load_task(write(tmp_path, [TABLE], metric="teds")).max_new_tokens == 512
    assert load_task(write(tmp_path, ["a"], metric="anls")).max_new_tokens == 16
    assert load_task(write(tmp_path, [TABLE], metric="teds", max_new_tokens=9)).max_new_tokens == 9


@pytest.mark.parametrize(
    ("answers", "header", "message"),
    [
        (
            [TABLE, "| a |"],
            {"metric": "teds"},
            r"read.jsonl:3: question q1 cannot be scored by 'teds'. The reference holds",
        ),
        (["| a |\n|---|\n| b |"], {"metric": "teds_paper"}, "holds no table in HTML, which"),
        ([["Year\tA\n1\t2", "x"]], {"metric": "scrm"}, "question q0 cannot be scored by 'scrm_strict'"),
        ([CHART], {"metric": "scrm_paper"}, "between literal"),
        ([" \n"], {"metric": "bleu"}, "has no words"),
        (["a"], {"metrics": []}, "'metrics' is a list of names"),
        (["a"], {"metrics": ["anls"], "also": ["bleu"]}, "stands instead of"),
        (["a"], {"metrics": "anls"}, "'metrics' is missing or no list"),
        ([[]], {"metric": "anls"}, "'answer' is missing, or neither a text nor a list"),
        ([["a", 7]], {"metric": "anls"}, "neither a text nor a list"),
        (["a"], {"metric": "edit_distance"}, "of a task's first metric more is better, and of 'edit_distance' less is"),
    ],
)
def test_evaluate_what_cannot_be_scored_is_told_with_its_place(tmp_path, answers, header, message) -> None:
    with pytest.raises(RequestError, match=message):
        load_task(write(tmp_path, answers, **header))


@pytest.mark.parametrize(
    ("name", "near"), [("ted", "teds"), ("scrm_strikt", "scrm_strict"), ("joint_metoer", "meteor")]
)
def test_evaluate_unknown_metrics_suggest_the_nearest(tmp_path, name, near) -> None:
    with pytest.raises(UnknownNameError, match=f"'{name}'.*Did you mean '{near}'"):
        load_task(write(tmp_path, ["a"], metric=name))


@pytest.mark.parametrize(
    ("package", "metric"), [("apted", "teds"), ("rapidfuzz", "scrm"), ("nltk", "meteor"), ("sacrebleu", "bleu")]
)
def test_evaluate_missing_packages_are_told_before_the_checkpoint_is_read(
    tmp_path, monkeypatch, package, metric
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match=rf"needs {package}, which.*pip install 'mcompose\[extraction\]'"):
        evaluate(tmp_path / "no-checkpoint-here", [write(tmp_path, [TABLE], metric=metric)])
    assert load_task(write(tmp_path, ["a b"], metric="word_f1")).metric == "word_f1"


def test_evaluate_missing_wordnet_is_told_and_nothing_is_fetched(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(RequestError, match="needs NLTK's WordNet data, which are not on this machine"):
        load_task(write(tmp_path, ["a"], metric="meteor_wordnet"))


def test_evaluate_rules_of_shares_are_functions_of_two_texts() -> None:
    assert rule_for("joint_teds")(TABLE, TABLE) == 1.0
    assert rule_for("relaxed_accuracy")("105", "100") is True
