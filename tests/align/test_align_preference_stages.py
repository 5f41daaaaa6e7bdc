"""Stages that learn from pairs, with domain experts, through collator and Trainer."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from align_data_samples import picture, write_lines
from align_expert_stages import make_home, requester, spied
from align_experts import DOMAINS, EXPERTS, rows_of, values
from PIL import Image
from torch.nn import functional as F

from mcompose.align.data.survey import make_sample
from mcompose.align.load import load_model
from mcompose.align.results.lineage import open_lineage
from mcompose.align.run import run_stage
from mcompose.errors import InterruptedRunError, RequestError
from mcompose.recipe import Stage
from mcompose.recipe.align.datasets import DatasetSpec
from mcompose.recipe.field_errors import FieldError

DPO = {
    "dpo": {"beta": 0.5},
    "train": ["projectors", "separators", "language"],
    "steps": 2,
    "batch_size": 4,
    "schedule": "constant",
    "lr": 2e-3,
    "clip": 0,
}
ASKED = "<image> what is it ?"


def write_pairs(folder):
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for shade, domain in enumerate(DOMAINS):
        picture(folder / f"{domain}.png", 20 + 80 * shade)
        record = {"prompt": ASKED, "chosen": "a b", "rejected": "c d e f", "image": f"{domain}.png"}
        found.append({"path": str(write_lines(folder / f"{domain}.jsonl", [record])), "domain": domain})
    record = {"conversations": [{"from": "human", "value": "what is it ?"}], "chosen": "f", "rejected": "a b c"}
    return [*found, {"path": str(write_lines(folder / "text.jsonl", [record]))}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    out, processor, _ = make_home(folder)
    return out, processor, write_pairs(folder / "pairs")


@pytest.fixture
def stage_request(home, tmp_path):
    made = requester(home, tmp_path)
    return lambda name="1", **changes: made(name, **{**DPO, **changes})


def log_probability(model, processor, said, *, domain):
    """Of an answer to the question about a domain's picture; all by hand, one row at a time."""
    folder, expert = model, domain if domain in EXPERTS else None
    network = load_model(open_lineage(folder), precision="float32").eval()
    turns = [{"role": "user", "content": ASKED if domain else "what is it ?"}]
    prompt = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = processor.apply_chat_template([*turns, {"role": "assistant", "content": said}], tokenize=False)
    images = {"images": [Image.open(processor.pictures / f"{domain}.png")], "experts": [expert]} if domain else {}
    begun = {"add_special_tokens": not whole.startswith(str(processor.tokenizer.bos_token)), "return_tensors": "pt"}
    lengths = [processor(text=[text], **images, **begun)["input_ids"].shape[1] for text in (prompt, whole.rstrip())]
    inputs = processor(text=[whole.rstrip()], **images, **begun)
    with torch.no_grad():
        log_probs_LV = network(**inputs).logits[0].log_softmax(-1)
    ids_L = inputs["input_ids"][0]
    return sum(float(log_probs_LV[place - 1, ids_L[place]]) for place in range(*lengths))


def test_the_margin_after_a_step_is_that_of_the_models_by_hand(home, stage_request, tmp_path):
    """Each answer alone, with its domain's expert, before and after the first step."""
    out, processor, _ = home
    processor.pictures = out.parent / "pairs"
    run_stage(stage_request("one", steps=1))
    run_stage(stage_request("two", steps=2))
    rows = rows_of(tmp_path / "two" / "log.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    margins = []
    for domain in (*DOMAINS, None):
        answers = ("a b", "c d e f") if domain else ("f", "a b c")
        gained = [
            log_probability(tmp_path / "one", processor, said, domain=domain)
            - log_probability(out, processor, said, domain=domain)
            for said in answers
        ]
        margins.append(0.5 * (gained[0] - gained[1]))
    assert rows[1]["margin"] == pytest.approx(sum(margins) / 4, rel=1e-3)
    assert rows[1]["loss"] == pytest.approx(-sum(float(F.logsigmoid(torch.tensor(m))) for m in margins) / 4, rel=1e-4)


def test_a_few_steps_prefer_what_was_chosen(home, stage_request, tmp_path):
    record = run_stage(stage_request(steps=8)).result.record
    rows = rows_of(tmp_path / "1" / "log.jsonl")
    assert rows[-1]["margin"] > 1
    assert rows[-1]["preference_accuracy"] == 1
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert record["settings"]["dpo"] == {"beta": 0.5, "loss": "sigmoid"}
    assert {"expert:maths", "expert:charts", "encoder:sees", "router:image"} <= set(record["frozen"])
    parent, delta = values(home[0] / "model.safetensors"), values(tmp_path / "1" / "delta.safetensors")
    for part in ("experts.maths.projector", "experts.charts.projector", "domain_tokens"):
        assert any(part in name and not torch.equal(delta[name], parent[name]) for name in delta), part


def test_pairs_reach_the_network_with_the_experts_of_their_domain(home, stage_request, monkeypatch):
    """Once for the reference and once in the step, the same rows: the chosen answers, then the rejected ones."""
    seen = spied(monkeypatch)
    run_stage(stage_request(steps=1))
    reference, step = seen
    ids = home[1].tokenizer.convert_tokens_to_ids
    for name, (_, tokens) in EXPERTS.items():
        counts = [int((row == ids(f"<expert:{name}>")).sum()) for row in step["input_ids"]]
        assert sorted(counts) == [0] * 6 + [tokens] * 2
        assert counts[:4] == counts[4:]
        assert len(step[f"{name}__pixel_values"]) == 2
    assert not (step["input_ids"] == ids("<expert>")).any()
    assert "mm_features" not in step
    assert sorted(reference["input_ids"].tolist()) == sorted(step["input_ids"].tolist())


def test_pieces_make_the_step_that_one_makes(stage_request, tmp_path):
    run_stage(stage_request("whole", steps=3))
    run_stage(stage_request("cut", steps=3, accumulation=2))
    whole, cut = (rows_of(tmp_path / name / "log.jsonl") for name in ("whole", "cut"))
    for key in ("loss", "margin", "grad_norm"):
        assert [row[key] for row in cut] == pytest.approx([row[key] for row in whole], rel=1e-3, abs=1e-5)


def test_an_interrupted_stage_ends_as_one_that_is_not(stage_request, tmp_path):
    """What it goes on from is trained, and the reference is still what the stage began with."""

    def interrupt(batch):
        if "reference_log_probs" in batch and 8 in batch["positions"]:
            signal.raise_signal(signal.SIGINT)
        return batch

    asked = stage_request("stopped", steps=5, save_every=1)
    with pytest.raises(InterruptedRunError):
        run_stage(replace(asked, masks=(interrupt,)))
    run_stage(asked)
    run_stage(stage_request("straight", steps=5, save_every=1))
    stopped, straight = (rows_of(tmp_path / name / "log.jsonl") for name in ("stopped", "straight"))
    assert [(row["loss"], row["margin"]) for row in stopped] == [(row["loss"], row["margin"]) for row in straight]
    assert len(stopped) == 5


def test_a_record_with_one_answer_is_refused_before_the_model_is_loaded(home, stage_request, tmp_path):
    turns = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "a"}]
    data = [{"path": str(write_lines(tmp_path / "one.jsonl", [{"conversations": turns}]))}]
    with pytest.raises(RequestError, match=r"one.jsonl:1: the record does not have 'chosen' and 'rejected'"):
        run_stage(stage_request(data=data))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"packing": True}, "packing"),
        ({"gscm": 0.3}, "no token hidden"),
        ({"router": {"routing": "predicted"}}, "domains choose"),
        ({"feature_cache": True}, "two answers"),
        ({"train": ["projectors", "router"]}, "is the router"),
        ({"data": [{"path": "a.jsonl", "streaming": True}]}, "stream"),
    ],
)
def test_what_goes_with_no_pairs(more, sentence):
    with pytest.raises((FieldError, ValueError), match=sentence):
        Stage(**{**DPO, "data": ["a.jsonl"], **more})


def test_short_forms():
    made = [Stage(**{**DPO, "data": ["a.jsonl"], "dpo": raw}).dpo for raw in (0.2, {}, {"loss": "sigmoid"})]
    assert [one.beta for one in made] == [0.2, 0.1, 0.1]


USER, GOOD, BAD = (
    {"role": who, "content": said} for who, said in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)


def pair_of(record, tmp_path):
    return make_sample(record, spec=DatasetSpec(path="d.jsonl"), index=0, place="d.jsonl:1", folder=tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"messages": [USER], "chosen": GOOD, "rejected": "b"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    ],
)
def test_ways_to_write_a_pair(record, tmp_path):
    sample = pair_of(record, tmp_path)
    texts = [
        [part["text"] for message in one.messages for part in message["content"]] for one in (sample, sample.other)
    ]
    assert texts == [["q", "a"], ["q", "b"]]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the same answer"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "must end before the answer"),
        ({"chosen": "a", "rejected": "b"}, "must start with the same prompt"),
        ({"chosen": [USER, GOOD], "rejected": [BAD]}, "must start with the same prompt"),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "must be one answer each"),
        ({"prompt": "q", "messages": [USER], "chosen": "a", "rejected": "b"}, "both 'messages' and 'prompt'"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "'chosen' is not an answer"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "an answer is empty"),
    ],
)
def test_a_pair_that_is_none_is_told_with_its_place(record, sentence, tmp_path):
    with pytest.raises(RequestError, match=f"d.jsonl:1: .*{sentence}"):
        pair_of(record, tmp_path)
