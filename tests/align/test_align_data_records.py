"""Records of every layout and file, and what is said about those that cannot be used."""

import json

import pytest
from align_data_samples import broken, llava_record, picture, sound, write_lines

from mcompose.align.data.datasets import open_records, stream_records
from mcompose.align.data.mixture import open_mixture
from mcompose.align.data.samples import instructed, parse_record
from mcompose.errors import RecipeError, RequestError
from mcompose.recipe.align.datasets import DatasetSpec


def spec(path, **more):
    return DatasetSpec(path=str(path), **more)


def image(path):
    return {"type": "image", "path": str(path)}


def words(text):
    return {"type": "text", "text": text}


def test_llava_records_keep_their_text_letter_by_letter(tmp_path):
    record = llava_record("<image>\n what <audio>is <image>?", "a cat", image=["a.png", "/b.png"], audio="c.wav")
    user, answer = parse_record(record, layout="auto", folder=tmp_path)
    assert user["role"] == "user"
    assert user["content"] == [
        image(tmp_path / "a.png"), words("\n what "), {"type": "audio", "path": str(tmp_path / "c.wav")}, words("is "),
        image("/b.png"), words("?"),
    ]  # fmt: skip
    assert answer == {"role": "assistant", "content": [words("a cat")]}


def test_chat_parts_get_the_line_breaks_of_the_chat_template(tmp_path):
    from mcompose.modeling.processing.chat import flattened

    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "image"}, words("what ?")]},
        {"role": "user", "content": [words("and"), {"type": "image_url", "image_url": {"url": "file://c.png"}}]},
        {"role": "assistant", "content": [words("a cat\n")]},
    ]
    parsed = parse_record({"messages": messages, "images": ["b.png"]}, layout="auto", folder=tmp_path)
    paths = [part["path"] for message in parsed for part in message["content"] if part["type"] == "image"]
    assert paths == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    said = ["".join(p["text"] if p["type"] == "text" else "<image>" for p in m["content"]) for m in parsed]
    assert said == [message["content"] for message in flattened(messages)]
    assert said[1] == "<image>\n<image>\nwhat ?"


def test_chat_text_takes_its_media_from_the_columns(tmp_path):
    record = {
        "messages": [{"role": "user", "content": "<points> what ?"}, {"role": "assistant", "content": "two"}],
        "points": "a.npy",
    }
    assert parse_record(record, layout="chat", folder=tmp_path)[0]["content"] == [
        {"type": "points", "path": str(tmp_path / "a.npy")}, words(" what ?"),
    ]  # fmt: skip


WRONG = {
    "the record has neither 'conversations' nor 'messages'": {"text": "a"},
    "the text has more <image> than the record has items of 'image'": llava_record(
        "<image> <image>", "a", image="a.png"
    ),
    "1 audio item(s) have no <audio> placeholder in the text": llava_record("what", "a", audio="a.wav"),
    "the record has no answer.": {"conversations": [{"from": "human", "value": "a"}]},
    "an answer is empty": llava_record("what", " "),
    "an answer contains a medium": llava_record("what", "<image>", image="a.png"),
    "a turn is by 'robot'": {"conversations": [{"from": "robot", "value": "a"}]},
    "is not a local file": llava_record("<image>", "a", image="https://host/a.png"),
    "the record has both 'image' and 'images'": llava_record("<image>", "a", image="a", images=["a"]),
    "a text part contains '<image>'": {"messages": [{"role": "user", "content": [words("<image>")]}]},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_records_that_cannot_be_used_say_why(sentence, tmp_path):
    with pytest.raises(RequestError) as caught:
        parse_record(WRONG[sentence], layout="auto", folder=tmp_path)
    assert sentence in str(caught.value)


def test_a_template_wraps_every_instruction_and_no_answer(tmp_path):
    picture(tmp_path / "a.png")
    record = llava_record("<image>\nwhat ?", "a", image="a.png")
    record["conversations"] += [{"from": "human", "value": "and ?"}, {"from": "gpt", "value": "b"}]
    messages = instructed(parse_record(record, layout="llava", folder=tmp_path), "{instruction} One word.")
    said = ["".join(p.get("text", "<image>") for p in m["content"]) for m in messages]
    assert said == ["<image>\nwhat ? One word.", "a", "and ? One word.", "b"]


def test_every_kind_of_file_holds_the_same_records_in_order(tmp_path):
    records = [llava_record(f"question {n}", f"answer {n}") for n in range(5)]
    write_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    write_lines(tmp_path / "c.json", records)
    for name in ("a.jsonl", "b.json", "c.json"):
        opened = open_records(spec(name), folder=tmp_path)
        assert [opened.read(index) for index in range(len(opened))] == records
    assert open_records(spec("a.jsonl"), folder=tmp_path).place(2) == f"{tmp_path}/a.jsonl:3"
    assert open_records(spec("b.json"), folder=tmp_path).place(2) == f"{tmp_path}/b.json[2]"


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path):
    for name, numbers in (("b.jsonl", (2, 3)), ("a.json", (0, 1))):
        write_lines(tmp_path / name, [llava_record("q", str(n)) for n in numbers])
    opened = open_records(spec("."), folder=tmp_path)
    assert [opened.read(i)["conversations"][1]["value"] for i in range(len(opened))] == ["0", "1", "2", "3"]
    assert opened.place(2) == f"{tmp_path}/b.jsonl:1"


def test_blank_lines_count_as_lines_and_not_as_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n{"n": 2}', encoding="utf-8")
    opened = open_records(spec("a.jsonl"), folder=tmp_path)
    assert (len(opened), opened.read(1), opened.place(1)) == (2, {"n": 2}, f"{tmp_path}/a.jsonl:3")


def test_parquet_is_read_by_number_and_as_a_stream(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    content = picture(tmp_path / "a.png").read_bytes()
    rows = [
        {"messages": [{"role": "user", "content": f"<image> {n}"}, {"role": "assistant", "content": "a"}],
         "images": [{"bytes": content, "path": None}]}
        for n in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    mixture = open_mixture([spec("a.parquet")], folder=tmp_path, seed=0)
    found = {mixture[index].index: mixture[index] for index in range(3)}
    assert [found[n].messages[0]["content"][1]["text"] for n in range(3)] == [" 0", " 1", " 2"]
    assert found[0].media() == {"image": [content]}
    streamed = [(index, record["images"][0]["bytes"]) for index, record, _, _ in
                stream_records(spec("a.parquet", streaming=True), folder=tmp_path)]  # fmt: skip
    assert streamed == [(n, content) for n in range(3)]


def three(tmp_path, **more):
    picture(tmp_path / "a.png")
    broken(tmp_path / "b.png")
    records = [llava_record("<image> what", "a", image=name) for name in ("a.png", "b.png", "c.png")]
    write_lines(tmp_path / "a.jsonl", records)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{no json\n")
        file.write('{"n": 1}\n')
    return open_mixture([spec("a.jsonl", **more)], folder=tmp_path, seed=0)


def test_a_missing_medium_is_an_error_with_its_path_and_line_before_training(tmp_path):
    with pytest.raises(RequestError) as caught:
        three(tmp_path)
    assert f"{tmp_path}/a.jsonl:3: The image {tmp_path}/c.png is missing." in str(caught.value)
    assert "on_broken: skip" in caught.value.hint


def test_what_is_skipped_is_counted_with_its_reason_and_nothing_stands_in_for_it(tmp_path):
    mixture = three(tmp_path, on_broken="skip")
    (report,) = mixture.report()
    assert (report.records, report.used, report.drawn) == (5, 1, 1)
    assert report.skipped == {"broken medium": 1, "malformed": 2, "missing medium": 1}
    assert f"{tmp_path}/a.jsonl:2: The image {tmp_path}/b.png cannot be read" in report.examples[0]
    assert f"{tmp_path}/a.jsonl:4: the line is not valid JSON" in report.examples[2]
    assert [mixture[index].index for index in range(len(mixture))] == [0]


def test_a_dataset_of_which_nothing_is_left_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"n": 1}])
    with pytest.raises(RequestError, match="has no usable record"):
        open_mixture([spec("a.jsonl", on_broken="skip")], folder=tmp_path, seed=0)


def test_datasets_that_are_not_there_are_named(tmp_path):
    for path, sentence in (("a.jsonl", "The dataset .* does not exist"), (".", "has no dataset")):
        with pytest.raises(RequestError, match=sentence):
            open_records(spec(path), folder=tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(RequestError, match=r"must be a \.json, \.jsonl, \.parquet file"):
        open_records(spec("a.txt"), folder=tmp_path)


def test_media_folders_are_relative_to_the_recipe(tmp_path):
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "a.jsonl", [llava_record("<image>", "a", image="a.png")])
    mixture = open_mixture([spec("data/a.jsonl", media="pictures")], folder=tmp_path, seed=0)
    assert mixture[0].media() == {"image": [tmp_path / "pictures" / "a.png"]}


RECIPE = """
schema: 1
name: a
sources: [{name: sees, model: local:a}]
merge: {method: naivemc}
align: {stages: {1: {train: [projectors], steps: 1, data: [DATA]}}}
"""
BAD_SPECS = {
    "{pth: a.jsonl}": "'align.stages[1].data[0].pth' is not a known key",
    "{path: a.jsonl, format: lava}": "'align.stages[1].data[0].format' is not a known format: 'lava'",
    "{path: a.jsonl, weight: 0}": "'align.stages[1].data[0].weight'",
    "{path: a.jsonl, template: hello}": "'align.stages[1].data[0].template' must contain '{instruction}' exactly once",
    "{path: 'hub:'}": "'align.stages[1].data[0].path'",
}


def loaded(data, tmp_path):
    from mcompose.recipe.load import parse_recipe

    return parse_recipe(RECIPE.replace("DATA", data), path=tmp_path / "r.yaml").recipe.align.stages[1].data[0]


@pytest.mark.parametrize("data", BAD_SPECS)
def test_bad_datasets_are_named_in_the_recipe(data, tmp_path):
    with pytest.raises(RecipeError) as caught:
        loaded(data, tmp_path)
    assert BAD_SPECS[data] in str(caught.value)


def test_a_bare_path_is_a_dataset():
    assert DatasetSpec.model_validate("a.jsonl") == DatasetSpec(path="a.jsonl")
    assert DatasetSpec.model_validate("local:a.jsonl").path == "a.jsonl"


def test_sounds_of_every_width_say_the_same(tmp_path, monkeypatch):
    import sys
    import wave

    import numpy as np

    from mcompose.media import read_media

    heard = read_media(sound(tmp_path / "a.wav", 100), "audio")
    whole = (np.clip(heard, -1, 1) * (2**31 - 1)).astype("<i4")
    for width in (1, 3, 4):
        raw = whole.view(np.uint8).reshape(-1, 4)[:, 4 - width :]
        raw = raw ^ 0x80 if width == 1 else raw  # one byte is stored without a sign
        with wave.open(str(tmp_path / "b.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(width)
            file.setframerate(8000)
            file.writeframes(np.ascontiguousarray(raw).tobytes())
        again = read_media(tmp_path / "b.wav", "audio", sampling_rate=8000)
        np.testing.assert_allclose(again, heard, atol=2 / 2 ** (8 * width - 1))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RequestError, match=r"a.wav has 8000 Hz, but this checkpoint needs 16000 Hz"):
        read_media(tmp_path / "a.wav", "audio", sampling_rate=16000)
