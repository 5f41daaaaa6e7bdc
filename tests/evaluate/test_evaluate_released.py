"""Released question files: what is read out of them, what they score, and the sentence for each thing that is wrong."""

from __future__ import annotations

import json

import pytest
from mini_sets import MODALITIES, Scripted, answered, record, turn, write_json, write_mcub, write_media

from mcompose.errors import RequestError
from mcompose.evaluate import EvaluateOptions, MediaError, evaluate_task, find_tasks, load_task
from mcompose.evaluate.results import figures


def figures_of(task, outputs, **options):
    made = evaluate_task(Scripted(outputs), task, options=EvaluateOptions(**options))
    return {r.metric: (r.value, r.n, r.unparsed, r.skipped) for r in figures(task, made)}


def test_evaluate_mcub_is_read_with_its_shared_answers(tmp_path) -> None:
    task = load_task(write_mcub(tmp_path))
    assert (task.name, task.metric, task.also, task.chance) == (
        "mcub-4",
        "joint_letter",
        ("joint_letter_lenient",),
        0.25,
    )
    assert (task.max_new_tokens, task.modalities, task.template) == (128, MODALITIES, "chat")
    assert [item.answer for item in task.items] == list("ABCDB")
    assert dict(task.items[0].choices) == {"A": "a dog", "B": "a car", "C": "rain", "D": "music"}
    assert task.items[1].inputs[0].path == tmp_path / "media/image-1.png"
    assert len(load_task(tmp_path / "MCUB-4.json", limit=2).items) == 2


def test_evaluate_mcub_strict_and_lenient_scores(tmp_path) -> None:
    task = load_task(write_mcub(tmp_path, gold="ABCDB"))
    outputs = ["A. a dog", "The answer is B.", "c", "I do not know", "A"]
    # the published rule: right, wrong, wrong, wrong, wrong; a person: right, right, right, no answer, wrong
    assert figures_of(task, outputs) == {"joint_letter": (0.2, 5, 0, 0), "joint_letter_lenient": (0.6, 5, 1, 0)}


def test_evaluate_mcub_prompt_is_the_turn_word_for_word(tmp_path) -> None:
    subject = Scripted("A" * 5)
    evaluate_task(subject, load_task(write_mcub(tmp_path)), options=EvaluateOptions(template="plain"))
    assert subject.prompts[0] == turn(MODALITIES).replace("<point>", "<points>")
    subject = Scripted("A" * 5)
    evaluate_task(subject, load_task(tmp_path / "MCUB-4.json"), options=EvaluateOptions(template="vicuna"))
    assert subject.prompts[0].startswith("A chat between")
    assert subject.prompts[0].endswith("D. music ASSISTANT:")
    assert {m: len(rows) for m, rows in subject.media[0].items()} == dict.fromkeys(MODALITIES, 5)


def test_evaluate_left_out_lines_go_with_their_input(tmp_path) -> None:
    subject = Scripted("A" * 5, modalities=("audio",))
    task = load_task(write_mcub(tmp_path))
    made = evaluate_task(subject, task, options=EvaluateOptions(leave_out=True, template="plain"))
    assert subject.prompts[0] == turn(("audio",))
    assert (made[0].left_out, made[0].seen) == (("image", "video", "points"), 1)
    assert [r.metric for r in figures(task, made)] == ["joint_letter", "joint_letter_lenient", "joint_letter_seen"]


def test_evaluate_placeholders_take_their_paths_in_order(tmp_path) -> None:
    write_media(tmp_path / "media")
    row = record("q", ("image",), text="Is <image> older than <image>?\nA. yes\nB. no")
    row["modal_inputs"]["vision"] = ["media/image-1.png", "media/image-0.png"]
    row["conversations"][1]["value"] = "B"
    task = load_task(write_json(tmp_path / "two.json", [row]))
    assert [x.path.name for x in task.items[0].inputs] == ["image-1.png", "image-0.png"]
    assert (task.metric, task.chance, task.items[0].answer) == ("letter", 0.5, "B")
    assert task.items[0].prompt(task.items[0].inputs[1:]).startswith("Is  older than <image>?")


def test_evaluate_music_avqa_compares_normalised_answers(tmp_path) -> None:
    write_media(tmp_path / "m")
    rows = [record(str(i), ("audio", "video"), text="audio: <audio>\nvideo: <video>\nHow many?") for i in range(4)]
    for row in rows:
        row["modal_inputs"] = {"audio": ["audio-0.wav"], "video": ["video-0.gif"]}
    write_json(tmp_path / "q.json", rows)
    write_json(tmp_path / "a.json", [answered(str(i), gold) for i, gold in enumerate(["two", "yes", "violin", "left"])])
    (tmp_path / "music.yaml").write_text(
        "kind: music-avqa\nquestions: q.json\nanswers: a.json\nmedia: m\ntask: music\n"
    )
    task = load_task(tmp_path / "music.yaml")
    assert (task.name, task.metric, task.chance) == ("music", "joint_vqa_match", 0.0)
    assert figures_of(task, ["2", "Yes.", "a violin and a flute", "The left"]) == {"joint_vqa_match": (0.75, 4, 0, 0)}


def points_task(folder, kind, gold, **card):
    write_media(folder / "media")
    rows = [record(str(i), ("points",), text="point: <point>\nWhat is this?") for i in range(len(gold))]
    write_json(folder / "q.json", rows)
    write_json(folder / "gold.json", gold)
    (folder / "card.yml").write_text(f"kind: {kind}\nquestions: q.json\nanswers: gold.json\n")
    return folder / "card.yml"


def test_evaluate_modelnet_names_labels(tmp_path) -> None:
    gold = [{"id": 0, "label": 23, "label_name": "night_stand"}, {"id": "1", "label": 10, "label_name": "cup"}]
    gold += [{"id": "2", "label_name": "xbox"}]
    task = load_task(points_task(tmp_path, "modelnet40", gold))
    assert (task.metric, task.also, task.chance, task.judge) == ("label", ("label_sole",), 1 / 40, "class")
    outputs = ["A small Night stand.", "A cupboard", "a chair"]
    assert figures_of(task, outputs) == {"label": (2 / 3, 3, 0, 0), "label_sole": (1 / 3, 3, 1, 0)}


def test_evaluate_objaverse_needs_labels_or_a_judge(tmp_path) -> None:
    gold = [answered(None, "a red toy car", object_id="0", label="car"), answered("1", "a mug", label="mug")]
    gold[0].pop("id")
    task = load_task(points_task(tmp_path, "objaverse", gold))
    assert figures_of(task, ["this is a car", "a cup"]) == {"label": (0.5, 2, 0, 0)}
    bare = [answered(str(i), "a thing") for i in range(2)]
    task = load_task(points_task(tmp_path, "objaverse", bare))
    assert task.metrics == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "q9"}, r"record 0 \(q9\) has no answer in .*MCUB-answer.json"),
        ({"modal_inputs": {"smell": ["x"]}}, "maps vision, audio, video, point to lists"),
        ({"modal_inputs": {}}, "1 <image> in the turn, and 0 paths"),
        ({"conversations": []}, "one human turn is needed"),
        ({"conversations": [{"from": "human", "value": 3}]}, "one human turn is needed"),
    ],
)
def test_evaluate_bad_records_are_named(tmp_path, change, message) -> None:
    path = write_mcub(tmp_path, gold="A")
    write_json(path, [json.loads(path.read_text())[0] | change])
    with pytest.raises(RequestError, match=message):
        load_task(path)


def test_evaluate_bad_answers_are_named(tmp_path) -> None:
    path = write_mcub(tmp_path, gold="A")
    write_json(tmp_path / "MCUB-answer.json", [answered("q0", "A"), answered("q0", "B")])
    with pytest.raises(RequestError, match="record 1: 'q0' was answered otherwise before"):
        load_task(path)
    write_json(tmp_path / "MCUB-answer.json", [answered("q0", "a dog")])
    with pytest.raises(RequestError, match=r"'a dog' is not a letter.*task card, MCUB-4.yaml: kind: mcub"):
        load_task(path)
    write_json(tmp_path / "MCUB-answer.json", [answered("q0", None)])
    with pytest.raises(RequestError, match="last turn holds no answer"):
        load_task(path)
    write_json(tmp_path / "MCUB-answer-2.json", [])
    with pytest.raises(RequestError, match=r"several answer files: MCUB-answer-2.json, MCUB-answer.json"):
        load_task(path)
    with pytest.raises(RequestError, match=r"night_stand.*is not a class of ModelNet40"):
        load_task(points_task(tmp_path / "p", "modelnet40", [{"id": "0", "label": 3, "label_name": "night_stand"}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: mcub\n", "is not a task card"),
        ("kind: mcub\nquestions: MCUB-4.json\nanswer: x\n", r"'answer' is not a key.*Did you mean 'answers'"),
        ("kind: mcubs\nquestions: MCUB-4.json\n", r"no kind is called 'mcubs'.*Did you mean 'mcub'"),
        ("kind: mcub\nquestions: gone.json\n", r"gone.json cannot be read"),
        ("kind: [\n", "is not valid YAML"),
    ],
)
def test_evaluate_bad_cards_are_named(tmp_path, text, message) -> None:
    write_mcub(tmp_path)
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(RequestError, match=message):
        load_task(tmp_path / "card.yaml")


def test_evaluate_folders_hold_cards_and_lines(tmp_path) -> None:
    write_mcub(tmp_path)
    (tmp_path / "card.yaml").write_text("kind: avqa\nquestions: MCUB-4.json\nanswers: MCUB-answer.json\n")
    assert find_tasks([tmp_path]) == [tmp_path / "card.yaml"]
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RequestError, match=r"notes.txt is not a task file"):
        load_task(tmp_path / "notes.txt")


def test_evaluate_missing_media_stop_or_are_counted(tmp_path) -> None:
    path = write_mcub(tmp_path, gold="AAAA")
    (tmp_path / "media/audio-1.wav").unlink()
    with pytest.raises(RequestError, match=r"record 1 \(q1\): the audio .*audio-1.wav is missing.*media: DIR"):
        load_task(path)
    task = load_task(path, check_media=False)
    with pytest.raises(MediaError, match=r"The audio .*audio-1.wav is missing"):
        evaluate_task(Scripted("AAAA"), task)
    said = []
    made = evaluate_task(Scripted("AB"), task, options=EvaluateOptions(batch_size=2, skip_broken=True, say=said.append))
    assert [bool(p.skipped) for p in made] == [False, True, False, True]
    assert [(r.value, r.n, r.skipped) for r in figures(task, made)] == [(0.5, 2, 2), (0.5, 2, 2)]
    assert "2 of 4 questions were skipped" in said[0]
    assert "audio-1.wav" in said[0]


def test_evaluate_nothing_left_gives_no_figure(tmp_path) -> None:
    path = write_mcub(tmp_path, gold="A")
    (tmp_path / "media/image-0.png").write_bytes(b"broken")
    made = evaluate_task(Scripted(""), load_task(path), options=EvaluateOptions(skip_broken=True))
    assert figures(load_task(path), made) == []


def test_evaluate_avqa_is_scored_like_mcub_over_its_own_inputs(tmp_path) -> None:
    write_media(tmp_path / "media")
    text = "audio: <audio>\nWhat is heard?\nA. rain\nB. a car\nC. music"
    write_json(tmp_path / "avqa-audio.json", [record(str(i), ("audio",), text=text) for i in range(3)])
    write_json(tmp_path / "gold.json", [answered(str(i), letter) for i, letter in enumerate("ABC")])
    (tmp_path / "avqa.yaml").write_text("kind: avqa\nquestions: avqa-audio.json\nanswers: gold.json\n")
    task = load_task(tmp_path / "avqa.yaml")
    assert (task.name, task.metric, task.chance) == ("avqa-audio", "letter", pytest.approx(1 / 3))
    assert figures_of(task, ["A", "b", "It is a car"]) == {
        "letter": (1 / 3, 3, 0, 0),
        "letter_lenient": (2 / 3, 3, 0, 0),
    }
