"""Evaluation of real tiny checkpoints of every kind, against answers made one by one by plain transformers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

from mcompose.errors import CheckpointError, RequestError
from mcompose.evaluate import EvaluateOptions, Report, Result, evaluate, evaluate_task, load_evaluated_model, load_task
from mcompose.modalities import MODALITIES


class Stub:
    """A checkpoint that writes what it is told, and remembers what it was asked."""

    experts = "auto"
    served = ()

    def __init__(self, outputs, modalities=("image",)):
        self.outputs, self.modalities, self.asked = iter(outputs), modalities, []
        self.sampling_rate, self.folder = None, "stub"

    def answer(self, prompts, media, *, max_new_tokens, domains=()):
        self.asked.append((list(prompts), {m: [len(row) for row in rows] for m, rows in media.items()}))
        return [next(self.outputs) for _ in prompts], [{} for _ in prompts]


def test_evaluate_predictions_keep_the_order_of_the_task(family) -> None:
    task = load_task(family.tasks["joint-common-2"])
    answers = {item.id: item.answer for item in task.items}
    stub = Stub(["A"] * 8, modalities=MODALITIES)
    made = evaluate_task(stub, task, options=EvaluateOptions(batch_size=3))
    assert [p.id for p in made] == [item.id for item in task.items]
    assert [p.right for p in made] == [answers[p.id] == "A" for p in made]
    assert sum(len(prompts) for prompts, _ in stub.asked) == 8
    assert all(len(prompts) <= 3 for prompts, _ in stub.asked)


def test_evaluate_left_out_inputs_leave_no_placeholder(family) -> None:
    task = load_task(family.tasks["joint-common-3"])
    stub = Stub(["A"] * 8, modalities=("audio",))
    made = evaluate_task(stub, task)
    for prediction, item in zip(made, task.items, strict=True):
        own = [x for x in item.inputs if x.modality == "audio"]
        assert prediction.prompt == " ".join([*("audio <audio>" for _ in own), item.question])
        assert prediction.seen == len(own)
        assert list(prediction.left_out) == [x.modality for x in item.inputs if x.modality != "audio"]


def test_evaluate_lacking_modality_is_refused_unless_left_out(family) -> None:
    with pytest.raises(RequestError, match=r"joint-sum shows \w+, which .*/image does not take \(it takes image\)"):
        evaluate(family.donors["image"], [family.tasks["joint-sum"]])
    report = evaluate(family.donors["image"], [family.tasks["joint-sum"]], options=EvaluateOptions(leave_out=True))
    task = load_task(family.tasks["joint-sum"])
    seen = sum(any(x.modality == "image" for x in item.inputs) for item in task.items)
    assert [(r.metric, r.n) for r in report.results] == [("joint_exact_match", 8), ("joint_exact_match_seen", seen)]
    with pytest.raises(RequestError, match=r"takes text only"):
        evaluate(family.base, [family.tasks["image-name"]])


def media_of(modality, path):
    if modality == "image":
        with Image.open(path) as opened:
            return {"images": [[opened.convert("RGB")]]}
    if modality == "audio":
        import wave

        with wave.open(str(path)) as file:
            return {"audio": [np.frombuffer(file.readframes(10**6), "<i2").astype(np.float32) / 32768]}
    if modality == "video":
        with Image.open(path) as opened:
            return {"videos": [np.stack([np.asarray(f.convert("L")) for f in ImageSequence.Iterator(opened)])]}
    return {"points": [np.load(path)]}


@pytest.mark.parametrize("modality", MODALITIES)
def test_evaluate_batches_answer_as_one_by_one(family, modality) -> None:
    task = load_task(family.tasks[f"{modality}-choice"])
    subject = load_evaluated_model(family.donors[modality])
    assert subject.modalities == (modality,)
    together = evaluate_task(subject, task, options=EvaluateOptions(batch_size=64))
    assert [p.output for p in evaluate_task(subject, task, options=EvaluateOptions(batch_size=4))] == [
        p.output for p in together
    ]
    trust = {"trust_remote_code": True} if modality == "points" else {}
    model = AutoModelForMultimodalLM.from_pretrained(family.donors[modality], **trust).eval()
    for prediction, item in zip(together, task.items, strict=True):
        inputs = subject.processor(
            text=[prediction.prompt], return_tensors="pt", **media_of(modality, item.inputs[0].path)
        )
        with torch.no_grad():
            written = model.generate(**inputs, do_sample=False, max_new_tokens=task.max_new_tokens)
        new = subject.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction.output == new


def test_evaluate_text_checkpoint_answers_as_plain_transformers(family) -> None:
    task = load_task(family.tasks["text-common-3"])
    made = evaluate_task(load_evaluated_model(family.base), task)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(family.base), AutoTokenizer.from_pretrained(family.base)
    for prediction in made:
        inputs = tokenizer(prediction.prompt, return_tensors="pt")
        written = model.generate(**inputs, do_sample=False, max_new_tokens=task.max_new_tokens)
        answer = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction.output == answer


def test_evaluate_saves_predictions_and_reports_json(family, tmp_path) -> None:
    seen = []
    report = evaluate(
        family.base,
        [family.tasks["text-name"], family.tasks["text-sum"]],
        progress=lambda *done: seen.append(done),
        options=EvaluateOptions(limit=5, save=tmp_path / "out"),
    )
    shown = json.loads(json.dumps(report.to_json()))
    assert shown["checkpoint"] == str(family.base)
    assert [(row["task"], row["metric"], row["n"]) for row in shown["results"]] == [
        ("text-name", "exact_match", 5),
        ("text-sum", "exact_match", 5),
    ]
    header, *rows = [json.loads(line) for line in (tmp_path / "out" / "text-name.jsonl").read_text().splitlines()]
    assert {k: header[k] for k in ("task", "version", "metric")} == {
        "task": "text-name",
        "version": 1,
        "metric": "exact_match",
    }
    assert shown["results"][0]["value"] == sum(row["right"] for row in rows) / 5
    assert seen == [("text-name", 5, 5), ("text-sum", 5, 5)]


def test_evaluate_report_rows_have_the_contract_keys() -> None:
    report = Report("x", (Result("joint-sum", "joint_exact_match", 0.5, 4, 0.1),))
    row = {"task": "joint-sum", "metric": "joint_exact_match", "value": 0.5, "n": 4, "chance": 0.1}
    assert report.to_json() == {"checkpoint": "x", "results": [row]}


def test_evaluate_folder_without_checkpoint_is_refused(family, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evaluate(tmp_path, [family.tasks["text-name"]])


def test_evaluate_media_are_checked_before_the_model_is_loaded(family, tmp_path) -> None:
    row = {"inputs": [{"modality": "image", "path": "gone.png", "text": "<image>"}], "question": "?", "answer": "A"}
    header = {"task": "t", "version": 1, "metric": "letter", "modalities": ["image"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RequestError, match=r"gone.png is missing"):
        evaluate(tmp_path / "no-checkpoint-here", [tmp_path / "t.jsonl"])


def test_evaluate_never_runs_code_that_is_not_trusted(tmp_path) -> None:
    config = {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(CheckpointError, match="trust"):
        load_evaluated_model(tmp_path)


def test_evaluate_a_file_that_is_missing_has_nothing_to_do_with_trust(family, tmp_path) -> None:
    folder = shutil.copytree(family.base, tmp_path / "broken")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_evaluated_model(folder)
    assert "mcompose verify" in caught.value.hint
    assert "trust" not in caught.value.hint


def test_evaluate_processor_plain_class_is_the_one_that_is_loaded(family) -> None:
    assert type(AutoProcessor.from_pretrained(family.donors["image"])).__name__ == "LlavaProcessor"
    assert type(load_evaluated_model(family.donors["video"]).processor).__name__ == "FramesProcessor"
