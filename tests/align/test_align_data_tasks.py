"""Records of tasks as conversations: every template by hand, boxes of any form, and what is refused."""

import json
from collections import Counter

import pytest
from align_data_samples import picture, write_lines
from PIL import Image

from mcompose.align.data.instructions import task_writer
from mcompose.align.data.mixture import open_mixture
from mcompose.align.data.streams import StreamMixture
from mcompose.align.data.views import picture_alignment
from mcompose.errors import RequestError
from mcompose.recipe import builtin_tasks
from mcompose.recipe.align.datasets import DatasetSpec

WIDE = {"image": "wide.png"}  # 200 x 100: 50 rows of filling above


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    return tmp_path


def written(folder, record, task, **more):
    """Instruction and answer of one record, as one text with placeholders each."""
    write_lines(folder / "a.jsonl", [record])
    mixture = open_mixture([DatasetSpec(path="a.jsonl", task=task, **more)], folder=folder, seed=0)
    user, assistant = mixture.sample_at(0, 0).messages
    return tuple(
        "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
        for message in (user, assistant)
    )


BOX = [20, 10, 100, 100]  # of 200 x 100, centred: 0.10, 0.30, 0.50, 0.75
TEXT = "[0.10, 0.30, 0.50, 0.75]"
BY_HAND = {
    "qa": ({"question": "What is red?", "answer": "a car"}, "What is red?", "a car"),
    "vqa": (
        {"question": "How many?", "answer": 3},
        "How many?\nAnswer the question using a single word or phrase.",
        "3",
    ),
    "choice": (
        {"question": "Which?", "options": ["cat", "dog"], "answer": "dog"},
        "Which?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly.",
        "B",
    ),
    "caption": ({"caption": "A car."}, "Provide a one-sentence caption for the provided image.", "A car."),
    "detailed_caption": (
        {"caption": "A red car stands."},
        "Generate a detailed description about the image.",
        "A red car stands.",
    ),
    "grounded_caption": (
        {
            "caption": "A man holds a man's hat.",
            "phrases": [{"phrase": "man", "box": BOX}, {"phrase": "hat", "boxes": [BOX, [0, 0, 200, 100]]}],
        },
        "Describe the image concisely. Include the bounding box for each mentioned object.",
        f"A man {TEXT} holds a man's hat {TEXT}, [0.00, 0.25, 1.00, 0.75].",
    ),
    "refer": (
        {"expression": "the {red} car", "box": BOX},
        "Please provide the bounding box coordinate of the region this sentence describes: the {red} car",
        TEXT,
    ),
    "region": (
        {"expression": "the red car", "box": BOX},
        f"Please provide a short description of this region: {TEXT}",
        "the red car",
    ),
    "detection": (
        {"objects": [{"name": "cat", "box": BOX}, {"name": "dog", "box": BOX}, {"name": "cat", "box": [0, 0, 20, 20]}]},
        "Detect all cat, dog shown in the image.",
        f"cat: {TEXT}, [0.00, 0.25, 0.10, 0.35]\ndog: {TEXT}",
    ),
    "pose": (
        {"box": BOX, "keypoints": {"nose": [20, 10], "left eye": None, "right eye": [100, 100]}},
        f"Detect the key points of the person in the region {TEXT}.",
        "nose [0.10, 0.30], right eye [0.50, 0.75]",
    ),
    "text_spotting": (
        {"texts": [{"text": "STOP", "box": BOX}, {"text": "5 km", "box": [0, 0, 20, 20]}]},
        "Please detect all texts and provide their bounding box coordinate.",
        f"STOP {TEXT}\n5 km [0.00, 0.25, 0.10, 0.35]",
    ),
    "chart_to_table": (
        {"table": [["year", "sales"], [2001, 3.5]]},
        "Convert this chart to a table.",
        "year | sales\n2001 | 3.5",
    ),
}


def test_every_built_in_task_has_a_case():
    assert list(BY_HAND) == list(builtin_tasks())


@pytest.mark.parametrize("task", BY_HAND)
def test_templates_by_hand(folder, task):
    record, instruction, answer = BY_HAND[task]
    assert written(folder, {**WIDE, **record}, task) == (f"<image>\n{instruction}", answer)


FORMS = {
    "corner": ({"align": "corner"}, BOX, "[0.10, 0.05, 0.50, 0.50]"),
    "xywh": ({"form": "xywh"}, [20, 10, 80, 90], TEXT),
    "picture": ({"unit": "picture"}, [0.1, 0.1, 0.5, 1.0], TEXT),
    "square": ({"unit": "square"}, [0.1, 0.3, 0.5, 0.75], TEXT),
}


@pytest.mark.parametrize("name", FORMS)
def test_boxes_of_every_form(folder, name):
    boxes, box, text = FORMS[name]
    assert written(folder, {**WIDE, "expression": "it", "box": box}, "refer", boxes=boxes)[1] == text


def test_sizes_come_from_the_record_where_it_has_them(folder):
    record = {"image": "wide.png", "width": 100, "height": 400, "expression": "it", "box": [0, 0, 100, 400]}
    assert written(folder, record, "refer")[1] == "[0.38, 0.00, 0.62, 1.00]"


@pytest.mark.parametrize(
    "keypoints", [[[20, 10], [100, 100, 2], [0, 0, 0]], [20, 10, 1, 100, 100, 2, 0, 0, 0]], ids=["list", "coco"]
)
def test_key_points_in_a_list_keep_the_place_of_those_that_are_not_there(folder, keypoints):
    record = {**WIDE, "box": BOX, "keypoints": keypoints}
    assert written(folder, record, "pose")[1] == "[0.10, 0.30], [0.50, 0.75], []"


@pytest.mark.parametrize(
    ("options", "answer"), [(["cat", "dog"], 1), ({"x": "cat", "y": "dog"}, "y"), (["cat", "dog"], "B")]
)
def test_letters_of_answers(folder, options, answer):
    record = {**WIDE, "question": "?", "options": options, "answer": answer}
    assert written(folder, record, "choice")[1] in {"B", "y"}


def test_media_stand_where_a_template_places_them(folder):
    record = {"images": ["wide.png", "wide.png"], "question": "Same?", "answer": "yes"}
    assert written(folder, record, "qa")[0] == "<image>\n<image>\nSame?"
    placed = written(folder, record, "qa", templates=["One: <image> two: <image> {question}"])
    assert placed[0] == "One: <image> two: <image> Same?"
    assert written(folder, {"question": "1 + 1?", "answer": "2"}, "qa") == ("1 + 1?", "2")


def test_instructions_are_chosen_by_seed_and_record_alone(folder):
    records = [{**WIDE, "question": f"q{n}", "answer": "a"} for n in range(200)]
    write_lines(folder / "a.jsonl", records)
    spec = DatasetSpec(path="a.jsonl", task="vqa", templates=["x {question}", "y {question}", "z {question}"])

    def firsts(seed, dataset=0):
        writer = task_writer(spec, folder=folder, seed=seed, dataset=dataset)
        return [writer.chosen(index)[0] for index in range(200)]

    assert firsts(3) == firsts(3)
    assert firsts(3) != firsts(4)
    assert firsts(3) != firsts(3, dataset=1)
    assert all(40 <= count <= 95 for count in Counter(firsts(3)).values())
    mixture = open_mixture([spec], folder=folder, seed=3)
    for epoch in (0, 1):
        for place in range(0, 200, 17):
            sample = mixture.sample_at(epoch, place)
            assert sample.messages[0]["content"][1]["text"] == f"\n{firsts(3)[sample.index]} q{sample.index}"
            assert sample.task == "vqa"


def test_streams_word_records_as_lists_do(folder):
    records = [{**WIDE, "question": f"q{n}", "answer": "a"} for n in range(10)]
    write_lines(folder / "a.jsonl", records)
    more = {"path": "a.jsonl", "task": "vqa", "templates": ["x {question}", "y {question}"]}
    listed = open_mixture([DatasetSpec(**more)], folder=folder, seed=3)
    stream = open_mixture([DatasetSpec(**more, streaming=True)], folder=folder, seed=3)
    assert isinstance(stream, StreamMixture)
    found = iter(stream.in_batches_of(2))
    assert [next(found).messages for _ in range(10)] == [sample.messages for sample in listed.samples()]


def test_words_from_a_file(folder):
    text = 'refer: ["Where is {expression}?"]\ncount: {instructions: ["How many {thing}?"], answer: "{number}"}\n'
    (folder / "words.yaml").write_text(text)
    record = {**WIDE, "expression": "it", "box": BOX, "thing": "cats", "number": 2}
    assert written(folder, record, "refer", templates="words.yaml") == ("<image>\nWhere is it?", TEXT)
    assert written(folder, record, "count", templates="words.yaml") == ("<image>\nHow many cats?", "2")
    own = {"instructions": ["How many {thing}?"], "answer": "{number}"}
    assert written(folder, record, "count", templates=own) == ("<image>\nHow many cats?", "2")


BAD_RECORDS = {
    "the record has no 'answer'": ("vqa", {"question": "?"}),
    "'question' must be a text or a number, not ['a']": ("vqa", {"question": ["a"], "answer": "b"}),
    "'question' contains '<image>', which is reserved for media": ("vqa", {"question": "<image>?", "answer": "b"}),
    "a box must be 4 numbers, not [1, 2, 3]": ("refer", {"expression": "it", "box": [1, 2, 3]}),
    "the box [50, 5, 20, 90] ends before it begins, read as 'xyxy'": (
        "refer",
        {"expression": "it", "box": [50, 5, 20, 90]},
    ),
    "the box [0, 0, 300, 90], read as pixels, lies outside its picture of 200 x 100 pixels": (
        "refer",
        {"expression": "it", "box": [0, 0, 300, 90]},
    ),
    "an entry of 'objects' has no 'name': {'box': [1, 2, 3, 4]}": ("detection", {"objects": [{"box": [1, 2, 3, 4]}]}),
    "'cat' in 'objects' has no 'box'": ("detection", {"objects": [{"name": "cat"}]}),
    "the phrase 'dog' is not in the caption, behind the phrases before it": (
        "grounded_caption",
        {"caption": "a cat", "phrases": [{"phrase": "dog", "box": [1, 2, 3, 4]}]},
    ),
    "the answer 'bird' is none of the 'options', or several of them": (
        "choice",
        {"question": "?", "options": ["cat", "dog"], "answer": "bird"},
    ),
    "'table' must be a text or a list of rows": ("chart_to_table", {"table": ["a"]}),
    "a point must be 2 numbers, not [1]": ("pose", {"box": [1, 2, 3, 4], "keypoints": [[1]]}),
}


@pytest.mark.parametrize("sentence", BAD_RECORDS)
def test_records_that_do_not_fit_are_named_before_training(folder, sentence):
    task, record = BAD_RECORDS[sentence]
    good = {**WIDE, **BY_HAND[task][0]}
    write_lines(folder / "a.jsonl", [good, {**WIDE, **record}])
    spec = DatasetSpec(path="a.jsonl", task=task)
    with pytest.raises(RequestError) as caught:
        open_mixture([spec], folder=folder, seed=0)
    assert caught.value.message == f"{folder}/a.jsonl:2: the task '{task}': {sentence}."
    kept = open_mixture([spec.model_copy(update={"on_broken": "skip"})], folder=folder, seed=0)
    assert [(row.used, row.skipped) for row in kept.report()] == [(1, {"malformed": 1})]


def test_names_of_templates_that_were_not_chosen_are_looked_up_too(folder):
    write_lines(folder / "a.jsonl", [{**WIDE, "question": "q", "answer": "a"}] * 2)
    spec = DatasetSpec(path="a.jsonl", task="vqa", templates=["{question}"] * 9 + ["{hint} {question}"])
    with pytest.raises(RequestError, match="the task 'vqa': the record has no 'hint'"):
        open_mixture([spec], folder=folder, seed=0)


def test_boxes_without_a_picture_need_its_size(folder):
    write_lines(folder / "a.jsonl", [{"expression": "it", "box": BOX}])
    with pytest.raises(RequestError, match="neither a picture nor 'width' and 'height'"):
        open_mixture([DatasetSpec(path="a.jsonl", task="refer")], folder=folder, seed=0)


def test_files_of_words_that_cannot_be_used(folder):
    write_lines(folder / "a.jsonl", [{**WIDE, "question": "q", "answer": "a"}])

    def refused(text):
        (folder / "words.yaml").write_text(text)
        with pytest.raises(RequestError) as caught:
            open_mixture([DatasetSpec(path="a.jsonl", task="vqa", templates="words.yaml")], folder=folder, seed=0)
        return str(caught.value).replace(f"{folder}/", "")

    assert refused("vqq: [a]") == "words.yaml has no templates for the task 'vqa'. Did you mean 'vqq'?"
    assert refused("vqa:\n  instrctions: [a]").startswith("words.yaml:2: 'instrctions' is not a known key.")
    assert refused("vqa:\n  answer: 'a {b'").startswith(
        "words.yaml:2: 'answer' has a brace that does not enclose a name."
    )
    assert refused("vqa: 3") == "words.yaml:1: 'vqa' must be a mapping with 'instructions' and 'answer'."
    assert refused("") == "words.yaml: the file of templates is empty."
    (folder / "words.yaml").unlink()
    with pytest.raises(RequestError, match=r"words\.yaml: the file of templates does not exist\."):
        open_mixture([DatasetSpec(path="a.jsonl", task="vqa", templates="words.yaml")], folder=folder, seed=0)


def test_boxes_follow_the_checkpoint_and_may_not_contradict_it(folder):
    views = {"padding": "square", "align": "corner"}
    config = {"sources": {"eyes": {"config": {"model_type": "mcompose_vision_mix", "views": views}}}}
    assert picture_alignment(config) == "corner"
    assert picture_alignment({"sources": {"a": {"views": views}}}) is None
    write_lines(folder / "a.jsonl", [{**WIDE, "expression": "it", "box": BOX}])
    mixture = open_mixture([DatasetSpec(path="a.jsonl", task="refer")], folder=folder, seed=0, align="corner")
    assert json.dumps(mixture.sample_at(0, 0).messages[1]).count("[0.10, 0.05, 0.50, 0.50]") == 1
    spec = DatasetSpec(path="a.jsonl", task="refer", boxes={"align": "center"})
    with pytest.raises(RequestError, match="alignment 'center', and this checkpoint's mixed encoders place pictures"):
        open_mixture([spec], folder=folder, seed=0, align="corner")


def test_a_picture_that_is_missing_is_named(folder):
    picture(folder / "b.png")
    write_lines(folder / "a.jsonl", [{"image": "gone.png", "expression": "it", "box": BOX}])
    with pytest.raises(RequestError, match=r"a\.jsonl:1: the task 'refer': The image .*gone\.png cannot be read"):
        open_mixture([DatasetSpec(path="a.jsonl", task="refer")], folder=folder, seed=0)
