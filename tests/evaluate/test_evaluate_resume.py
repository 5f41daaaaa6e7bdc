"""Killed evaluations go on: no question is asked twice, and answers of another run are never mixed in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mini_sets import Scripted, answered, record, write_json, write_mcub, write_media

from mcompose.errors import RequestError
from mcompose.evaluate import EvaluateOptions, evaluate, evaluate_task, load_task

KILLED = """
import os, signal, sys
sys.path[:0] = [{here!r}]
from pathlib import Path
from mini_sets import Scripted
from mcompose.evaluate import EvaluateOptions, evaluate_task, load_task

class Killed(Scripted):
    def answer(self, prompts, media, **how):
        if len(self.prompts) >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(prompts, media, **how)

task = load_task(Path({task!r}))
evaluate_task(Killed("ABCDABCD"), task, options=EvaluateOptions(batch_size=2, save=Path({out!r})))
"""


def numbered(folder, count, gold="A"):
    """Questions whose words differ, so that a question asked twice shows."""
    write_media(folder / "media")
    rows = [record(f"q{i}", ("image",), text=f"<image>\nQuestion {i}\nA. yes\nB. no") for i in range(count)]
    write_json(folder / "answers.json", [answered(f"q{i}", gold) for i in range(count)])
    return write_json(folder / "set.json", rows)


def lines(folder, name="set"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_evaluate_killed_run_goes_on_where_it_stopped(tmp_path) -> None:
    path, out = numbered(tmp_path, 8), tmp_path / "out"
    code = KILLED.format(here=str(Path(__file__).parent), task=str(path), out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["id"] for row in lines(out)[1:]] == ["q0", "q1", "q2", "q3"]
    subject, said = Scripted("ABCD"), []
    made = evaluate_task(subject, load_task(path), options=EvaluateOptions(save=out, say=said.append))
    assert [prompt.split("\n")[1] for prompt in subject.prompts] == [f"Question {i}" for i in range(4, 8)]
    assert [p.output for p in made] == list("ABCDABCD")
    assert sum(p.right for p in made) == 2
    assert said == ["set: 4 of 8 answers are those of an earlier run."]
    assert [row["id"] for row in lines(out)[1:]] == [f"q{i}" for i in range(8)]


def test_evaluate_line_that_a_kill_cut_short_is_asked_again(tmp_path) -> None:
    path, out = numbered(tmp_path, 4), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_task(Scripted("AAA", stop_after=3), load_task(path), options=EvaluateOptions(batch_size=1, save=out))
    whole = (out / "set.jsonl").read_bytes()
    (out / "set.jsonl").write_bytes(whole[:-30])
    subject = Scripted("BB")
    made = evaluate_task(subject, load_task(path), options=EvaluateOptions(batch_size=1, save=out))
    assert [prompt.split("\n")[1] for prompt in subject.prompts] == ["Question 2", "Question 3"]
    assert [p.output for p in made] == list("AABB")


def test_evaluate_finished_run_asks_nothing_and_a_limit_keeps_the_rest(tmp_path) -> None:
    path, out = numbered(tmp_path, 6), tmp_path / "out"
    first = evaluate_task(Scripted("AABBAA"), load_task(path), options=EvaluateOptions(save=out))
    assert evaluate_task(Scripted(""), load_task(path), options=EvaluateOptions(save=out)) == first
    assert evaluate_task(Scripted(""), load_task(path, limit=2), options=EvaluateOptions(save=out)) == first[:2]
    assert evaluate_task(Scripted(""), load_task(path), options=EvaluateOptions(save=out)) == first


def test_evaluate_other_settings_start_anew_and_say_so(tmp_path) -> None:
    path, out = numbered(tmp_path, 2), tmp_path / "out"
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"one")

    def run(outputs, **options):
        said = []
        subject = Scripted(outputs, folder=checkpoint)
        made = evaluate_task(subject, load_task(path), options=EvaluateOptions(save=out, say=said.append, **options))
        return len(subject.prompts), [p.output for p in made], said

    assert run("AA") == (2, ["A", "A"], [])
    asked, outputs, said = run("BB", template="vicuna")
    assert (asked, outputs) == (2, ["B", "B"])
    assert "moved to" in said[0]
    assert [row["output"] for row in lines(out, "set.previous")[1:]] == ["A", "A"]
    (checkpoint / "README.md").write_text("a card is no weight")
    assert run("", template="vicuna")[0] == 0
    (checkpoint / "model.safetensors").write_bytes(b"two")
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    assert run("CC", template="vicuna")[:2] == (2, ["C", "C"])
    assert run("DD", template="vicuna", resume=False)[:2] == (2, ["D", "D"])


def test_evaluate_corrected_question_is_asked_again_alone(tmp_path) -> None:
    path, out = numbered(tmp_path, 3), tmp_path / "out"
    evaluate_task(Scripted("ABA"), load_task(path), options=EvaluateOptions(save=out))
    rows = json.loads(path.read_text())
    rows[1]["conversations"][0]["value"] = "<image>\nCorrected\nA. yes\nB. no"
    write_json(path, rows)
    subject = Scripted("A")
    made = evaluate_task(subject, load_task(path), options=EvaluateOptions(save=out))
    assert [prompt.split("\n")[1] for prompt in subject.prompts] == ["Corrected"]
    assert [p.output for p in made] == ["A", "A", "A"]
    write_json(tmp_path / "answers.json", [answered(f"q{i}", "B") for i in range(3)])
    assert not any(p.right for p in evaluate_task(Scripted(""), load_task(path), options=EvaluateOptions(save=out)))


def test_evaluate_skipped_questions_are_tried_again(tmp_path) -> None:
    path, out = write_mcub(tmp_path, gold="AA"), tmp_path / "out"
    image = tmp_path / "media/image-1.png"
    whole = image.read_bytes()
    image.write_bytes(b"broken")
    made = evaluate_task(Scripted("A"), load_task(path), options=EvaluateOptions(save=out, skip_broken=True))
    assert [bool(p.skipped) for p in made] == [False, True]
    image.write_bytes(whole)
    made = evaluate_task(Scripted("B"), load_task(path), options=EvaluateOptions(save=out, skip_broken=True))
    assert [(p.output, p.skipped) for p in made] == [("A", ""), ("B", "")]


def test_evaluate_progress_counts_earlier_answers(tmp_path) -> None:
    path, out, seen = numbered(tmp_path, 4), tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        evaluate_task(Scripted("AA", stop_after=2), load_task(path), options=EvaluateOptions(batch_size=2, save=out))
    evaluate_task(
        Scripted("AA"),
        load_task(path),
        progress=lambda *done: seen.append(done),
        options=EvaluateOptions(batch_size=1, save=out),
    )
    assert seen == [("set", 3, 4), ("set", 4, 4)]


def test_evaluate_two_tasks_of_one_name_are_refused(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_mcub(tmp_path / name)
    with pytest.raises(RequestError, match="both called 'mcub-4'"):
        evaluate(tmp_path, [tmp_path / "one/MCUB-4.json", tmp_path / "two/MCUB-4.json"])
