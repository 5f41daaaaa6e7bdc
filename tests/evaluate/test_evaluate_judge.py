"""The judge and its endpoint, against a server on the loopback that answers by a script."""

from __future__ import annotations

import json

import pytest
from mini_sets import Scripted, answered, chat_server, record, write_json, write_media

from mcompose.errors import RequestError
from mcompose.evaluate import Endpoint, EndpointError, EvaluateOptions, evaluate, evaluate_task, load_task
from mcompose.evaluate.endpoint import TOKEN_VARIABLE, endpoint_from
from mcompose.evaluate.judge import parse_verdict
from mcompose.evaluate.results import figures

TOKEN = "not-a-real-token-1234"


def points_task(folder, kind, gold):
    write_media(folder / "media")
    write_json(
        folder / "q.json",
        [record(str(i), ("points",), text="point: <point>\nWhat is this?") for i in range(len(gold))],
    )
    write_json(folder / "gold.json", gold)
    (folder / "card.yaml").write_text(f"kind: {kind}\nquestions: q.json\nanswers: gold.json\n")
    return load_task(folder / "card.yaml")


def classes(*names):
    return [{"id": str(i), "label_name": name} for i, name in enumerate(names)]


def test_evaluate_judge_counts_what_it_cannot_parse(tmp_path) -> None:
    task = points_task(tmp_path, "modelnet40", classes("cup", "cup", "cup", "cup", "chair"))
    replies = {"a mug": "10", "a thing": "-1", "hm": "It could be a cup.", "a seat": "8", "a bowl": "41"}

    def reply(prompt):
        assert "10: cup" in prompt
        return replies[prompt.split("Description: ")[1].split("\n")[0]]

    with chat_server(reply) as (url, seen):
        options = EvaluateOptions(judge=Endpoint(url, "judge-1"))
        made = evaluate_task(Scripted(["a mug", "a thing", "hm", "a bowl", "a seat"]), task, options=options)
    rows = {r.metric: (r.value, r.n, r.unparsed) for r in figures(task, made)}
    # right: mug and seat; "-1" is a verdict, and wrong; a sentence and a class that is not there are no verdicts
    assert rows["judge:judge-1"] == (0.4, 5, 2)
    assert rows["label"] == (0.0, 5, 0)
    assert [p.judge for p in made] == ["10", "-1", "It could be a cup.", "41", "8"]
    assert {(call["path"], call["model"], call["temperature"]) for call in seen} == {
        ("/v1/chat/completions", "judge-1", 0)
    }


def test_evaluate_objaverse_judge_says_true_or_false(tmp_path) -> None:
    task = points_task(tmp_path, "objaverse", [answered(str(i), f"thing {i}") for i in range(4)])
    with pytest.raises(RequestError, match="only a judge can compare"):
        evaluate(tmp_path, [tmp_path / "card.yaml"])
    replies = {"thing 0": "T", "thing 1": " false.", "thing 2": "Perhaps", "thing 3": "True"}
    with chat_server(lambda prompt: replies[prompt.split("Reference: ")[1].split("\n")[0]]) as (url, _):
        made = evaluate_task(Scripted(["x"] * 4), task, options=EvaluateOptions(judge=Endpoint(url, "m")))
    assert [p.right for p in made] == [True, False, False, True]
    assert [(r.metric, r.value, r.unparsed) for r in figures(task, made)] == [("judge:m", 0.5, 1)]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("10", True),
        (" 10.\n", True),
        ("10: cup", True),
        ("9", False),
        ("-1", False),
        ("40", None),
        ("ten", None),
        ("1 or 10", None),
    ],
)
def test_evaluate_class_replies(tmp_path, reply, verdict) -> None:
    task = points_task(tmp_path, "modelnet40", classes("cup"))
    assert parse_verdict(task, task.items[0], reply) is verdict


def test_evaluate_judge_is_asked_once_per_answer(tmp_path) -> None:
    task = points_task(tmp_path, "modelnet40", classes("cup", "cup", "bed"))
    busy = {"on": True}

    def reply(prompt):
        if busy["on"] and "a bunk" in prompt:
            return (400, {}, "out of credit")
        return "10"

    with chat_server(reply) as (url, seen):
        options = EvaluateOptions(judge=Endpoint(url, "m"), save=tmp_path / "out")
        with pytest.raises(EndpointError, match="refused with 400: out of credit"):
            evaluate_task(Scripted(["a cup", "a mug", "a bunk"]), task, options=options)
        busy["on"] = False
        made = evaluate_task(Scripted([]), task, options=options)
        assert [p.judge for p in made] == ["10", "10", "10"]
        asked = [call["messages"][0]["content"] for call in seen]
        assert all(sum(word in prompt for prompt in asked) <= 1 for word in ("a cup", "a mug"))
        calls = len(seen)
        evaluate_task(Scripted([]), task, options=options)
        assert len(seen) == calls


def test_evaluate_endpoint_tries_again_while_the_server_is_busy() -> None:
    answers = iter([(503, {}, "busy"), (429, {"Retry-After": "7"}, "slow down"), "fine"])
    waits = []
    with chat_server(lambda _: next(answers)) as (url, seen):
        assert Endpoint(url, "m", sleep=waits.append)("hello", max_tokens=9) == "fine"
    assert waits == [1.0, 7.0]
    assert [call["max_tokens"] for call in seen] == [9, 9, 9]
    with chat_server(lambda _: (500, {}, "down")) as (url, seen):
        with pytest.raises(EndpointError, match="did not answer in 2 attempts: 500 down"):
            Endpoint(url, "m", attempts=2, sleep=waits.append)("hello")
        assert len(seen) == 2
    with pytest.raises(EndpointError, match="did not answer in 1 attempts"):
        Endpoint(url, "m", attempts=1)("nobody listens there any more")


@pytest.mark.parametrize("body", ["no json", "{}", '{"choices": []}', "[1]"])
def test_evaluate_endpoint_refuses_what_is_no_completion(body) -> None:
    with (
        chat_server(lambda _: (200, {}, body)) as (url, _),
        pytest.raises(EndpointError, match="not a chat completion"),
    ):
        Endpoint(url, "m")("hello")


def test_evaluate_token_is_sent_and_never_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    task = points_task(tmp_path, "modelnet40", classes("cup"))
    with chat_server(lambda _: "10") as (url, seen):
        endpoint = Endpoint(url, "m")
        evaluate_task(Scripted(["x"]), task, options=EvaluateOptions(judge=endpoint, save=tmp_path / "out"))
    assert seen[0]["token"] == f"Bearer {TOKEN}"
    assert TOKEN not in repr(endpoint)
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert not any(TOKEN in path.read_text() for path in (tmp_path / "out").iterdir())
    with (
        chat_server(lambda _: (401, {}, f"bad key {TOKEN}")) as (url, _),
        pytest.raises(EndpointError, match=rf"401: bad key \*\*\*.*{TOKEN_VARIABLE}") as refused,
    ):
        Endpoint(url, "m")("hello")
    assert TOKEN not in str(refused.value)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with chat_server(lambda _: "x") as (url, seen):
        Endpoint(url, "m")("hello")
    assert seen[0]["token"] is None


def test_evaluate_redirects_do_not_carry_the_token(monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with chat_server(lambda _: "stolen") as (other, seen):
        with (
            chat_server(lambda _: (302, {"Location": f"{other}/chat/completions"}, "")) as (url, _),
            pytest.raises(EndpointError, match="refused with 302"),
        ):
            Endpoint(url, "m")("hello")
        assert seen == []


def test_evaluate_endpoint_comes_from_options_or_environment(monkeypatch) -> None:
    assert endpoint_from(None, None) is None
    with pytest.raises(RequestError, match="No model is named"):
        endpoint_from("http://localhost:1/v1", None)
    monkeypatch.setenv("MCOMPOSE_ENDPOINT", "http://localhost:1/v1")
    monkeypatch.setenv("MCOMPOSE_ENDPOINT_MODEL", "m")
    assert endpoint_from(None, None) == Endpoint("http://localhost:1/v1", "m")
    assert endpoint_from(None, "other") == Endpoint("http://localhost:1/v1", "other")
    for url in ("ftp://x/v1", "file:///etc/passwd", "localhost:8000", "http://me:secret@host/v1"):
        with pytest.raises(RequestError) as refused:
            endpoint_from(url, "m")
        assert "secret" not in str(refused.value)


def test_evaluate_judged_answers_are_written_with_their_reply(tmp_path) -> None:
    task = points_task(tmp_path, "modelnet40", classes("cup"))
    with chat_server(lambda _: "3") as (url, _):
        evaluate_task(Scripted(["x"]), task, options=EvaluateOptions(judge=Endpoint(url, "m"), save=tmp_path / "out"))
    row = json.loads((tmp_path / "out/q.jsonl").read_text().splitlines()[1])
    assert (row["judge"], row["verdicts"]) == ("3", {"label": False, "label_sole": None, "judge:m": False})
