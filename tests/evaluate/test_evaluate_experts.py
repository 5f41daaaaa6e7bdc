"""Checkpoints with experts under evaluation: by the router, by one expert, by none; against plain transformers."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "align"))

from align_experts import build_experts, write_domains

from mcompose.cli.app import app
from mcompose.errors import RequestError, UnknownNameError
from mcompose.evaluate import EvaluateOptions, evaluate, load_evaluated_model
from mcompose.evaluate.routes import forced_routes, router_confusion
from mcompose.pipeline.measure import GenerateOptions, generate


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    out, _ = build_experts(folder)
    write_domains(folder / "data", each=2)
    rows = [{"task": "seen", "version": 1, "metric": "exact_match", "modalities": ["image"], "max_new_tokens": 3}]
    for name in ("charts0", "maths1", "photos0"):
        media = [{"modality": "image", "path": f"{name}.png", "text": "<image>"}]
        rows.append({"id": name, "inputs": media, "question": "what is it ?", "answer": "a"})
    task = folder / "data" / "seen.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out, task


def expected(out, task, experts):
    """Answers one by one; the expert is named when the slots are filled, not to the processor as ``eval`` does it."""
    subject = load_evaluated_model(out)
    answers = []
    for name in ("charts0", "maths1", "photos0"):
        image = Image.open(task.parent / f"{name}.png").convert("RGB")
        inputs = subject.processor(text="<image> what is it ?", images=image, experts="auto", return_tensors="pt")
        with torch.no_grad():
            written = subject.model.generate(
                **inputs, do_sample=False, max_new_tokens=3, min_new_tokens=0, experts=experts
            )
        answers.append(
            subject.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        )
    return answers


@pytest.mark.parametrize("experts", ["none", "maths", "charts"])
def test_evaluate_forced_experts_answer_as_if_the_processor_had_been_told(home, tmp_path, experts) -> None:
    out, task = home
    options = EvaluateOptions(save=tmp_path, template="plain", experts=experts)
    report = evaluate(out, [task], options=replace(options, batch_size=2))
    assert report.to_json()["experts"] == experts
    _, *rows = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
    assert [row["output"] for row in rows] == expected(out, task, experts)


def test_evaluate_experts_tell_answers_apart_and_never_share_them(home, tmp_path) -> None:
    out, task = home
    said: list[str] = []
    found = {}
    for experts in ("auto", "none", "charts"):
        options = EvaluateOptions(save=tmp_path, template="plain", experts=experts, say=said.append)
        report = evaluate(out, [task], options=options)
        assert ("experts" in report.to_json()) == (experts != "auto")
        _, *rows = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
        found[experts] = [row["output"] for row in rows]
    assert found["none"] != found["charts"]
    assert sum("asked anew" in one for one in said) == 2


def test_evaluate_unknown_experts_are_named(home) -> None:
    out, task = home
    with pytest.raises(UnknownNameError, match="no expert 'chart'; it has charts, maths") as caught:
        evaluate(out, [task], options=EvaluateOptions(experts="chart"))
    assert "charts" in str(caught.value.hint)


def test_evaluate_a_checkpoint_without_experts_is_sent_nowhere(family) -> None:
    task = next(path for name, path in family.tasks.items() if name.startswith("text"))
    with pytest.raises(RequestError, match="has no experts"):
        evaluate(family.base, [task], options=EvaluateOptions(experts="none"))


def test_generate_sends_media_to_the_expert_that_is_named(home) -> None:
    out, task = home
    picture = task.parent / "charts0.png"
    for experts in ("none", "charts"):
        answer = generate(
            out, "<image> what is it ?", media={"image": [picture]},
            options=GenerateOptions(max_new_tokens=3, plain=True, experts=experts),
        )  # fmt: skip
        assert answer == expected(out, task, experts)[0].strip()


def test_commands_hand_the_expert_on(home, tmp_path) -> None:
    out, task = home
    words = [
        "eval",
        str(out),
        str(task),
        "--experts",
        "charts",
        "--template",
        "plain",
        "--save",
        str(tmp_path),
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert json.loads(done.stdout)["experts"] == "charts"
    _, *rows = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
    assert [row["output"] for row in rows] == expected(out, task, "charts")
    picture = str(task.parent / "charts0.png")
    words = ["generate", str(out), "<image> what is it ?", "--image", picture, "--experts", "none", "--plain"]
    done = CliRunner().invoke(app, [*words, "--max-new-tokens", "3"])
    assert done.stdout.strip() == expected(out, task, "none")[0].strip()


def test_eval_does_not_record_what_was_forced(home) -> None:
    out, task = home
    done = CliRunner().invoke(app, ["eval", str(out), str(task), "--experts", "none", "--record"])
    assert isinstance(done.exception, RequestError)
    assert "--experts forces it" in done.exception.message


@pytest.fixture(scope="module")
def told(home):
    """The same questions, with the domains of their pictures."""
    header, *rows = map(json.loads, home[1].read_text(encoding="utf-8").splitlines())
    domains = {"charts0": "charts", "maths1": "maths", "photos0": "photos"}
    rows = [{**header, "task": "told"}, *({**row, "domain": domains[row["id"]]} for row in rows)]
    task = home[1].with_name("told.jsonl")
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return task


def rows_in(folder: Path, name: str) -> list:
    _, *rows = map(json.loads, (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    return rows


@pytest.mark.parametrize(
    ("route", "wanted"), [("told", ["charts", "maths", "none"]), ("wrong", ["maths", "charts", "charts"])]
)
def test_evaluate_sends_media_by_the_domains_of_a_task(home, told, tmp_path, route, wanted) -> None:
    evaluate(home[0], [told], options=EvaluateOptions(batch_size=3, save=tmp_path, template="plain", experts=route))
    rows = rows_in(tmp_path, "told")
    assert [row["routes"] for row in rows] == [{"image": [[] if name == "none" else [name]]} for name in wanted]
    alone = [expected(home[0], home[1], name)[i] for i, name in enumerate(wanted)]
    assert [row["output"] for row in rows] == alone


def test_evaluate_counts_what_the_router_chose(home, told, tmp_path) -> None:
    subject = load_evaluated_model(home[0])
    names = subject.model.config.routers["image"]["classes"]
    logits = []
    for name in ("charts0", "maths1", "photos0"):
        image = Image.open(told.parent / f"{name}.png").convert("RGB")
        inputs = subject.processor(text="<image> ?", images=image, experts="auto", return_tensors="pt")
        pixels = next(value for key, value in inputs.items() if key.endswith("pixel_values") and "expert" not in key)
        with torch.no_grad():
            tower = subject.model.model.get_encoder("image")
            seen = next(m for m in tower.modules() if type(m).__name__ == "CLIPVisionModel")(pixels).last_hidden_state
            feature = subject.model.config.routers["image"]["feature"]
            pooled = seen[:, 0] if feature == "class" else seen.mean(1)
            logits.append(int((pooled @ subject.model.model.routers["image"].weight.T).argmax()))
    options = EvaluateOptions(save=tmp_path, template="plain")
    report = evaluate(home[0], [told], options=options)
    matrix = report.routing["image"]
    labels = [names.index("charts"), names.index("maths"), 0]
    wanted = [[0] * len(names) for _ in names]
    for label, chosen in zip(labels, logits, strict=True):
        wanted[label][chosen] += 1
    assert [list(row) for row in matrix.counts] == wanted
    assert report.to_json()["routing"]["image"]["n"] == 3
    again = evaluate(home[0], [told], options=options)  # from the answers of the first run
    assert again.routing == report.routing
    assert "routing" not in evaluate(home[0], [home[1]], options=EvaluateOptions(template="plain")).to_json()


def test_domains_that_nobody_names_are_asked_for(home, tmp_path) -> None:
    with pytest.raises(RequestError, match="names no domain, so nobody knows which expert is 'wrong'"):
        evaluate(home[0], [home[1]], options=EvaluateOptions(experts="wrong"))
    with pytest.raises(RequestError, match="A prompt has no domain"):
        generate(home[0], "?", media={}, options=GenerateOptions(experts="told"))


def test_the_eval_command_prints_the_routers_matrix(home, told, tmp_path) -> None:
    words = ["eval", str(home[0]), str(told), "--template", "plain", "--save", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert "image router, rows are the tasks' domains" in done.stdout
    assert "precision" in done.stdout


def test_answers_without_routes_are_asked_again(home, told, tmp_path) -> None:
    """As older versions left them."""
    options = EvaluateOptions(save=tmp_path, template="plain")
    report = evaluate(home[0], [told], options=options)
    file = tmp_path / "told.jsonl"
    header, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    old = [{key: value for key, value in row.items() if key != "routes"} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in [header, *old[:2], rows[2]]), encoding="utf-8")
    assert evaluate(home[0], [told], options=options).routing == report.routing


def test_slips_in_a_tasks_domains_are_told(home, told, tmp_path) -> None:
    task = told.with_name("slip.jsonl")
    task.write_text(told.read_text(encoding="utf-8").replace('"domain": "charts"', '"domain": "chrats"'))
    said: list[str] = []
    evaluate(home[0], [task], options=EvaluateOptions(template="plain", experts="told", say=said.append))
    assert any("the domain 'chrats' is not an expert's, and looks like 'charts'" in one for one in said)


def test_experts_are_forced_where_no_router_was_composed(home, told, tmp_path) -> None:
    out = shutil.copytree(home[0], tmp_path / "without")
    for name in ("config.json", "processor_config.json"):
        settings = json.loads((out / name).read_text(encoding="utf-8"))
        settings["routers"] = {} if name == "config.json" else []
        (out / name).write_text(json.dumps(settings), encoding="utf-8")
    tensors = load_file(out / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "routers" not in k}, out / "model.safetensors", {"format": "pt"})
    options = EvaluateOptions(save=tmp_path / "answers", template="plain", experts="told")
    evaluate(out, [told], options=options)
    rows = rows_in(tmp_path / "answers", "told")
    assert [row["routes"]["image"] for row in rows] == [[["charts"]], [["maths"]], [[]]]
    assert [row["output"] for row in rows] == [
        expected(home[0], home[1], name)[i] for i, name in enumerate(("charts", "maths", "none"))
    ]


ENTRIES = {
    "charts": {"modality": "image", "domain": "chart"},
    "maths": {"modality": "image", "domain": "math"},
    "plots": {"modality": "image", "domain": "chart"},
    "whale": {"modality": "audio", "domain": "sea"},
}


def test_wrong_experts_are_never_those_of_the_domain() -> None:
    def sent(domain: str, route: str, modality: str = "image") -> tuple[str, ...]:
        return forced_routes(ENTRIES, modality, domain=domain, route=route)

    assert [sent("chart", "wrong"), sent("plots", "wrong"), sent("math", "wrong")] == [
        ("maths",), ("maths",), ("plots",),
    ]  # fmt: skip
    assert [sent("chart", "told"), sent("maths", "told"), sent("sea", "told")] == [("charts",), ("maths",), ()]
    assert [sent("sea", "wrong"), sent("", "told"), sent("x", "whale"), sent("x", "none")] == [("charts",), (), (), ()]
    assert sent("chart", "wrong", "audio") == ("whale",)
    with pytest.raises(RequestError, match="there is only 'whale'"):
        sent("sea", "wrong", "audio")


def test_a_domain_of_another_modality_is_no_label() -> None:
    routers = {"image": {"classes": ["none", *list(ENTRIES)[:3]]}, "audio": {"classes": ["none", "whale"]}}
    seen = [("chart", {"image": (("charts",),), "audio": (("whale",),)}), ("street", {"audio": ((),)})]
    made = router_confusion(routers, ENTRIES, seen)
    assert (made["audio"].counts, made["audio"].ignored) == (((1, 0), (0, 0)), 1)
    assert made["image"].counts[1][1] == made["image"].total == 1
