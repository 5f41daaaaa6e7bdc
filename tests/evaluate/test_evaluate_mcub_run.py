"""The MCUB form on a real composed checkpoint: batches, the command line, and a set that was made here."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from mini_sets import MODALITIES, answered, record, write_json
from typer.testing import CliRunner

from mcompose.cli.app import app
from mcompose.errors import RequestError
from mcompose.evaluate import EvaluateOptions, evaluate, evaluate_task, load_evaluated_model, load_task


@pytest.fixture(scope="module")
def mini(family, tmp_path_factory):
    """Eight questions of different lengths over real media of the family, in the released form."""
    folder = tmp_path_factory.mktemp("mini")
    found = {m: [] for m in MODALITIES}
    for task in (load_task(family.tasks[f"{m}-name"]) for m in MODALITIES):
        for item in task.items:
            found[item.inputs[0].modality].append(item.inputs[0].path)
    words = ["seven", "one", "two", "three", "four", "five", "six", "eight"]
    rows = []
    for i in range(8):
        text = "".join(f"{m} <{'point' if m == 'points' else m}>\n" for m in MODALITIES)
        row = record(f"q{i}", text=f"{text}{' '.join(words[: i + 1])}\nA. one\nB. two\nC. three\nD. four")
        keys = zip(("vision", "audio", "video", "point"), MODALITIES, strict=True)
        row["modal_inputs"] = {key: [os.path.relpath(found[m][i % len(found[m])], folder)] for key, m in keys}
        rows.append(row)
    write_json(folder / "MCUB-answer.json", [answered(f"q{i}", "ABCD"[i % 4]) for i in range(8)])
    return write_json(folder / "MCUB-4.json", rows)


def test_evaluate_composed_batches_answer_as_one_by_one(composed, mini) -> None:
    subject, task = load_evaluated_model(composed), replace(load_task(mini), max_new_tokens=12)
    assert subject.modalities == MODALITIES
    shake(subject)
    single = [p.output for p in evaluate_task(subject, task, options=EvaluateOptions(batch_size=1))]
    assert len({len(subject.tokenizer(item.turn)["input_ids"]) for item in task.items}) == 8, "padding counts"
    assert len(set(single)) > 2, "answers that are all alike would prove nothing"
    assert [p.output for p in evaluate_task(subject, task, options=EvaluateOptions(batch_size=3))] == single
    assert [p.output for p in evaluate_task(subject, task, options=EvaluateOptions(batch_size=8))] == single


def shake(subject):
    """Makes a checkpoint talk that learned to say nothing: float32, shaken weights, no end."""
    subject.model.float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    subject.model.generation_config.suppress_tokens = subject.tokenizer.all_special_ids


def test_evaluate_command_reads_released_files(composed, mini, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["eval", str(composed), str(mini), "--json", "--limit", "4"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    assert [(r["task"], r["metric"], r["n"], r["chance"]) for r in shown["results"]] == [
        ("mcub-4", "joint_letter", 4, 0.25),
        ("mcub-4", "joint_letter_lenient", 4, 0.25),
    ]
    (folder,) = (tmp_path / "build/eval").iterdir()
    assert folder.name.startswith("naivemc-")
    rows = [json.loads(line) for line in (folder / "mcub-4.jsonl").read_text().splitlines()[1:]]
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    strict = sum(row["output"].strip()[:1] == row["answer"] for row in rows) / 4
    assert shown["results"][0]["value"] == strict
    assert json.loads((folder / "report.json").read_text()) == shown
    again = CliRunner().invoke(app, ["eval", str(composed), str(mini)], catch_exceptions=False)
    assert "mcub-4: 4 of 8 answers are those of an earlier run." in again.stderr
    assert "chance" in again.stdout.splitlines()[0]


def test_evaluate_donor_sees_its_own_part_of_an_mcub_question(family, mini) -> None:
    with pytest.raises(RequestError, match="mcub-4 shows image"):
        evaluate(family.donors["audio"], [mini])
    report = evaluate(family.donors["audio"], [mini], options=EvaluateOptions(leave_out=True))
    assert [(r.metric, r.n) for r in report.results] == [
        ("joint_letter", 8),
        ("joint_letter_lenient", 8),
        ("joint_letter_seen", 8),
    ]


def test_evaluate_unknown_template_is_refused_before_anything_is_loaded(mini, tmp_path) -> None:
    with pytest.raises(RequestError, match="No template is called 'llama'"):
        evaluate(tmp_path / "nothing", [mini], options=EvaluateOptions(template="llama"))


def test_evaluate_mcub_command_makes_a_folder_of_tasks(composed, mini, tmp_path) -> None:
    entities = [(m, x.path) for item in load_task(mini).items for m, x in zip(MODALITIES, item.inputs, strict=True)]
    names = [
        "dog park",
        "rain road",
        "violin hall",
        "train bridge",
        "boat river",
        "horse field",
        "cat sofa",
        "drum show",
    ]
    rows = [
        {"modality": m, "path": str(path), "caption": f"{names[i // 4 % 7]} and {names[(i // 4 + i % 4 + 1) % 7]}"}
        for i, (m, path) in enumerate(entities)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["mcub", "make", str(tmp_path / "captions.jsonl"), "-o", str(tmp_path / "set"), "--embedding", "tfidf"]
    ran = CliRunner().invoke(app, [*arguments, "--size", "2", "--size", "4", "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    sets = json.loads(ran.stdout)["sets"]
    assert [s["name"] for s in sets][-1] == "mcub-4"
    assert len(sets) == 7
    report = evaluate(composed, [tmp_path / "set"], options=EvaluateOptions(limit=2))
    assert [r.task for r in report.results] == [
        s["name"] for s in sorted(sets, key=lambda s: s["name"]) for _ in (0, 1)
    ]
    assert all(r.n == 2 for r in report.results)
