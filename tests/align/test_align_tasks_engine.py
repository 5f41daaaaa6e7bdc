"""Stages with several tasks: losses by task add up to the step's, steps of one task, resumed and over processes."""

import json
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from align_folders import STAGE, build, write_recipe
from test_align_engine_processes import torchrun
from torch.nn import functional as F

from mcompose.align.load import load_processor
from mcompose.align.run import StageRequest, run_stage
from mcompose.align.stage import plan_steps
from mcompose.align.stage_data import open_data
from mcompose.align.task_losses import TaskLosses
from mcompose.errors import InterruptedRunError, RequestError
from mcompose.modeling import register
from mcompose.recipe import Stage

DATA = [
    {"path": "data/vqa.jsonl", "task": "vqa"},
    {"path": "data/refer.jsonl", "task": "refer", "templates": ["where is {expression} ?", "{expression}"]},
    "data/data.jsonl",
]
NAMES = ["vqa", "refer", "data/data.jsonl"]
SETTINGS = {**STAGE, "data": DATA, "train": ["projectors", "head"], "lr": 1e-3, "steps": 8, "save_every": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = build(tmp_path_factory.mktemp("tasks")).parent
    vqa = [{"image": f"{3 + n % 9}.png", "question": "what is", "answer": "abc"[n % 3]} for n in range(18)]
    refer = [{"image": "3.png", "expression": "a b", "box": [n, 0, 20, 28]} for n in range(9)]
    for name, records in (("vqa", vqa), ("refer", refer)):
        (home / "data" / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return home


def request(home, folder, **changes):
    return StageRequest(Stage(**{**SETTINGS, **changes}), 1, home / "out", folder, home, "tiny", quiet=True)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def by_task(row):
    """Task to loss and number of learned tokens."""
    found = {name.removeprefix("loss/"): row[name] for name in row if name.startswith("loss/")}
    assert list(found) == [name for name in NAMES if name in found]
    return {name: (loss, row[f"answer_tokens/{name}"]) for name, loss in found.items()}


def total(row):
    losses = by_task(row).values()
    return sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}, {"packing": True}], ids=["plain", "pieces", "packed"])
def test_losses_of_tasks_add_up_to_the_steps(home, tmp_path, changes):
    run_stage(request(home, tmp_path / "1", **changes))
    rows = rows_of(tmp_path / "1")
    assert len(rows) == 8
    assert sum(len(by_task(row)) > 1 for row in rows) >= 6
    torch.testing.assert_close([total(row) for row in rows], [row["loss"] for row in rows], rtol=2e-4, atol=1e-4)
    record = json.loads((tmp_path / "1" / "stage.json").read_text())
    assert sorted(record["task_losses"]) == sorted(NAMES)
    firsts = next(by_task(row)["refer"][0] for row in rows if "refer" in by_task(row))
    assert record["task_losses"]["refer"]["first"] == firsts
    assert (tmp_path / "1" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_losses_of_tasks_by_hand(home, tmp_path):
    """The losses of the first step, from the model and the samples themselves."""
    run_stage(request(home, tmp_path / "1"))
    register()
    stage = Stage(**SETTINGS)
    from transformers import AutoModelForMultimodalLM

    model = AutoModelForMultimodalLM.from_pretrained(home / "out", dtype=torch.float32).eval()
    data = open_data(stage, load_processor(home / "out"), folder=home)
    plan = plan_steps(stage, samples=data.samples)
    ordered, batches = data.ordered(stage, plan), data.batches(stage, model)
    sums = {}
    for position in range(4):
        batch = batches([ordered[position]])
        group = data.mixture.tasks[int(batch.pop("tasks"))]
        batch.pop("tokens")
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        losses = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="none")
        loss, tokens = sums.get(group, (0.0, 0))
        sums[group] = (loss + float(losses.sum()), tokens + int((labels[0, 1:] != -100).sum()))
    found = by_task(rows_of(tmp_path / "1")[0])
    assert {name: tokens for name, (_, tokens) in found.items()} == {name: tokens for name, (_, tokens) in sums.items()}
    for name, (loss, tokens) in sums.items():
        assert found[name][0] == pytest.approx(loss / tokens, rel=1e-5), name


def test_one_task_a_step(home, tmp_path):
    run_stage(request(home, tmp_path / "1", batches="one_task", steps=9, accumulation=2))
    rows = rows_of(tmp_path / "1")
    assert all(len(by_task(row)) == 1 for row in rows)
    assert {next(iter(by_task(row))) for row in rows} == set(NAMES)
    torch.testing.assert_close([total(row) for row in rows], [row["loss"] for row in rows], rtol=2e-4, atol=1e-4)


def test_an_interrupted_run_of_one_task_steps_resumes_to_the_same_log(home, tmp_path):
    changes = {"batches": "one_task", "steps": 9}

    def interrupt(batch):
        if 20 in batch["positions"]:
            signal.raise_signal(signal.SIGINT)
        return batch

    run_stage(request(home, tmp_path / "straight", **changes))
    with pytest.raises(InterruptedRunError):
        run_stage(replace(request(home, tmp_path / "1", **changes), masks=(interrupt,)))
    run_stage(request(home, tmp_path / "1", **changes))
    logs = [[(row["loss"], by_task(row)) for row in rows_of(tmp_path / name)] for name in ("straight", "1")]
    assert logs[0] == logs[1]
    files = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("straight", "1")]
    assert files[0] == files[1]


def test_one_task_alone_has_no_losses_by_task(home, tmp_path):
    run_stage(request(home, tmp_path / "1", data=DATA[:1], steps=2))
    assert all(not by_task(row) for row in rows_of(tmp_path / "1"))
    assert "task_losses" not in json.loads((tmp_path / "1" / "stage.json").read_text())


def test_two_processes_have_the_steps_and_the_losses_of_one(home, tmp_path):
    from mcompose.pipeline.align import AlignOptions, align

    stage = {**SETTINGS, "batches": "one_task", "steps": 9, "accumulation": 2}
    recipe = write_recipe(home, {1: stage})
    align(recipe, stage=1, options=AlignOptions(output=tmp_path / "one", quiet=True))
    result = torchrun(home, "-o", str(tmp_path / "two"), "--json", count=2)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-5, atol=0)
    for first, second in zip(one, two, strict=True):
        ((name, (loss, tokens)),) = by_task(first).items()
        assert list(by_task(second)) == [name]
        assert by_task(second)[name][1] == tokens
        assert by_task(second)[name][0] == pytest.approx(loss, rel=1e-5)


def test_words_of_tasks_decide_the_result(home, tmp_path):
    """A stage whose templates changed, even in a file, is another stage."""
    words = home / "words.yaml"
    digests = []
    for text in ("vqa: ['{question} ?']", "vqa: ['is {question} ?']"):
        words.write_text(text)
        stage = Stage(**{**SETTINGS, "data": [{**DATA[0], "templates": "words.yaml"}]})
        digests.append(open_data(stage, load_processor(home / "out"), folder=home).digest)
    assert digests[0] != digests[1]


def test_streams_cannot_give_steps_of_one_task(home):
    stage = Stage(**{**SETTINGS, "data": [{**DATA[0], "streaming": True}], "batches": "one_task"})
    with pytest.raises(RequestError, match="A stream cannot give batches of one task"):
        open_data(stage, load_processor(home / "out"), folder=home)


def test_a_task_without_a_whole_step_is_refused(home, tmp_path):
    recipe = yaml.safe_load(write_recipe(home, {1: SETTINGS}).read_text())
    assert recipe["align"]["stages"][1]["data"] == DATA
    with pytest.raises(RequestError, match=r"The samples of '.*' fill no step of 4 in the 1 steps of this stage\."):
        run_stage(request(home, tmp_path / "1", batches="one_task", steps=1))


class _Outputs(dict):
    kept_places = None


def test_sums_by_hand():
    # Two words, logits 0 and 0: every token costs log 2; logits 0 and log 3 for word 1: log(4/3) or log 4.
    logits = torch.zeros(2, 4, 2)
    logits[1, :, 1] = torch.log(torch.tensor(3.0))
    labels = torch.tensor([[-100, 0, 1, -100], [-100, -100, 1, 0]])
    losses = TaskLosses(["a", "b", "c"])
    losses.add(_Outputs(logits=logits), {"labels": labels}, torch.tensor([2, 0]))
    sums = losses.take(torch.device("cpu"))
    log = torch.log
    wanted = log(torch.tensor(4 / 3)) + log(torch.tensor(4.0))
    torch.testing.assert_close(sums, torch.stack([torch.stack([wanted, wanted * 0, 2 * log(torch.tensor(2.0))]),
                                                  torch.tensor([2.0, 0.0, 2.0])]))  # fmt: skip
    row = losses.row(sums)
    assert list(row) == ["loss/a", "answer_tokens/a", "loss/c", "answer_tokens/c"]
    assert losses.take(torch.device("cpu")).tolist() == [[0.0] * 3, [0.0] * 3]


def test_sums_where_hidden_tokens_were_dropped():
    # Of four places the second is gone in row 0; row 1 keeps three and is filled up.
    logits = torch.zeros(2, 3, 2)
    outputs = _Outputs(logits=logits)
    outputs.kept_places = torch.tensor([[0, 2, 3], [0, 1, -1]])
    labels = torch.tensor([[-100, -100, 1, 0], [-100, 1, -100, -100]])
    losses = TaskLosses(["a", "b"])
    losses.add(outputs, {"labels": labels}, torch.tensor([0, 1]))
    assert losses.take(torch.device("cpu"))[1].tolist() == [2.0, 1.0]


def test_a_packed_row_knows_its_samples():
    losses = TaskLosses(["a", "b"])
    labels = torch.tensor([[-100, 1, -100, 1, 1, -100, 1]])
    positions = torch.tensor([[0, 1, 0, 1, 2, 0, 1]])
    losses.add(
        _Outputs(logits=torch.zeros(1, 7, 2)), {"labels": labels, "position_ids": positions}, torch.tensor([1, 0, 1])
    )
    assert losses.take(torch.device("cpu"))[1].tolist() == [2.0, 2.0]
