"""Boxes and points of answers: values by hand, references in pixels, and what a task file may not say."""

import json
import math

import pytest
from PIL import Image

from mcompose.errors import RequestError
from mcompose.evaluate import load_task
from mcompose.evaluate.grounding import box_iou, iou, iou_at, oks, pck
from mcompose.evaluate.grounding.keypoints import COCO_SIGMAS
from mcompose.evaluate.metrics import score
from mcompose.evaluate.results import Prediction, figures
from mcompose.square import Square, read_numbers


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 4, 2), (0, 0, 2, 2), 0.5),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # they touch
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((0, 0, 0, 1), (0, 0, 1, 1), 0.0),  # no area
        ((2, 2, 0, 0), (0, 0, 2, 2), 0.0),  # ends before it begins
    ],
)
def test_overlap_by_hand(one, other, value):
    assert box_iou(one, other) == pytest.approx(value)
    assert box_iou(other, one) == pytest.approx(value)


def test_overlap_is_that_of_pixels_for_any_alignment():
    """A square's axes have one scale: 60 x 40 and 40 x 40 pixels share 20 x 40 of a 200 x 100 picture."""
    pixels = (20, 10, 80, 50), (60, 10, 100, 50)
    assert box_iou(*pixels) == pytest.approx(800 / (2400 + 1600 - 800))
    for align in ("center", "corner"):
        square = Square(200, 100, align)
        assert box_iou(*(square.fractions(box) for box in pixels)) == pytest.approx(box_iou(*pixels))


def test_the_first_box_of_an_answer_counts():
    wanted = "[0.00, 0.00, 0.50, 0.50]"
    assert iou("It is at [0.00, 0.00, 0.50, 0.50], not [0.1, 0.1, 0.2, 0.2].", wanted) == 1.0
    assert iou("[0.3, 0.4] [0.00, 0.00, 0.50, 0.25]", wanted) == 0.5
    assert iou_at("[0.00, 0.00, 0.50, 0.25]", wanted, threshold=0.5) == 1.0
    assert iou_at("[0.00, 0.00, 0.50, 0.24]", wanted, threshold=0.5) == 0.0
    assert iou("on the left", wanted) == 0.0
    assert score("iou", "on the left", wanted, choices={}) is None
    assert score("iou@0.5", "[0, 0, 0.5, 0.5]", wanted, choices={}) == 1.0


NOSE = {"points": {"nose": [0.5, 0.5]}, "box": [0.4, 0.3, 0.6, 0.8]}


def test_similarity_of_points_by_hand():
    # area 0.1, sigma 0.026: a distance of 0.02 gives exp(-0.0004 / (2 * 0.1 * 0.052^2)).
    wanted = math.exp(-0.0004 / (2 * 0.1 * 0.052**2))
    assert oks("nose [0.52, 0.50]", json.dumps(NOSE)) == pytest.approx(wanted)
    assert oks("[0.5, 0.5]", json.dumps({**NOSE, "points": [[0.5, 0.5]], "sigmas": [0.1]})) == 1.0
    # An area of its own counts before the box's.
    own = {**NOSE, "area": 0.05}
    assert oks("nose [0.52, 0.50]", json.dumps(own)) == pytest.approx(wanted**2)
    # Half the points are there, one of them right.
    two = {**NOSE, "points": {"nose": [0.5, 0.5], "left_eye": [0.52, 0.48], "right eye": []}}
    assert oks("nose [0.50, 0.50]", json.dumps(two)) == pytest.approx(0.5)
    assert oks("Left eye: [0.52, 0.48], nose [0.50, 0.50], right eye [0, 0]", json.dumps(two)) == pytest.approx(1.0)


def test_coco_points_in_order():
    points = [[0.01 * n, 0.02 * n] for n in range(17)]
    points[3] = []
    reference = json.dumps({"points": points, "area": 0.04})
    answer = ", ".join(f"[{n * 0.01:.2f}, {n * 0.02:.2f}]" if n != 3 else "[]" for n in range(17))
    assert oks(answer, reference) == pytest.approx(1.0)
    moved = answer.replace("[0.00, 0.00]", "[0.03, 0.04]")  # the nose, by 0.05
    lost = 1 - math.exp(-(0.05**2) / (2 * 0.04 * (2 * COCO_SIGMAS["nose"]) ** 2))
    assert oks(moved, reference) == pytest.approx(1 - lost / 16)


def test_similarity_of_points_as_pycocotools_computes_it():
    """The formula of pycocotools' ``computeOks`` for one person, written out on pixels."""
    import numpy as np

    generator = np.random.default_rng(0)
    wanted, given = generator.uniform(50, 350, (17, 2)).round(), generator.uniform(-9, 9, (17, 2))
    given = wanted + given
    visible = generator.integers(0, 3, 17)
    variances = (np.array(list(COCO_SIGMAS.values())) * 2) ** 2
    area = 9000.0
    distances = ((wanted - given) ** 2).sum(1) / variances / (area + np.spacing(1)) / 2
    expected = float(np.exp(-distances[visible > 0]).mean())
    square = Square(640, 400)
    flat = [float(value) for row, v in zip(wanted, visible, strict=True) for value in (*row, v)]
    from mcompose.evaluate.grounding import reference_text

    reference = reference_text({"keypoints": flat, "area": area, "size": [640, 400]}, size_of=lambda: (0, 0))
    answer = ", ".join(str(list(map(float, square.fractions(row)))) for row in given)
    assert oks(answer, reference) == pytest.approx(expected, rel=1e-4)


def test_share_of_points_by_hand():
    reference = json.dumps({"points": [[0.1, 0.1], [0.5, 0.5], [], [0.9, 0.9]], "box": [0, 0, 0.4, 0.5]})
    # The longer side is 0.5: within 0.1 at alpha 0.2, within 0.05 at 0.1.
    answer = "[0.20, 0.10], [0.53, 0.54], [0.3, 0.3]"
    assert pck(answer, reference, alpha=0.2) == pytest.approx(2 / 3)
    assert pck(answer, reference, alpha=0.1) == pytest.approx(1 / 3)
    assert score("pck@0.2", answer, reference, choices={}) == pytest.approx(2 / 3)
    assert score("pck@0.2", "none", reference, choices={}) is None


def write_task(folder, questions, **header):
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    head = {"task": "boxes", "version": 1, "modalities": ["image"], **header}
    picture = {"modality": "image", "path": "wide.png", "text": "<image>"}
    rows = [{"id": str(n), "inputs": [picture], "question": "Where?", **one} for n, one in enumerate(questions)]
    path = folder / "boxes.jsonl"
    path.write_text("\n".join(map(json.dumps, [head, *rows])))
    return path


def test_a_task_of_boxes_from_file_to_figures(tmp_path):
    questions = [
        {"answer": {"box": [20, 10, 100, 100]}},
        {"answer": [{"box": [0, 0, 200, 100]}, "[0.10, 0.30, 0.50, 0.75]"]},
        {"answer": {"box": [20, 10, 100, 100], "size": [200, 100], "align": "corner"}},
        {"answer": "[0.00, 0.00, 1.00, 1.00]"},
    ]
    task = load_task(write_task(tmp_path, questions, metrics=["iou@0.5", "iou", "exact_match"]))
    assert [item.answer for item in task.items] == [
        "[0.100000, 0.300000, 0.500000, 0.750000]",
        "[0.000000, 0.250000, 1.000000, 0.750000]",
        "[0.100000, 0.050000, 0.500000, 0.500000]",
        "[0.00, 0.00, 1.00, 1.00]",
    ]
    assert task.max_new_tokens == 512
    outputs = ["[0.10, 0.30, 0.50, 0.75]", "[0.10, 0.30, 0.50, 0.75]", "[0.10, 0.30, 0.50, 0.75]", "no idea"]
    made = []
    for item, output in zip(task.items, outputs, strict=True):
        verdicts = {
            metric: score(metric, output, item.answer, choices={}, accepted=item.accepted) for metric in task.metrics
        }
        made.append(Prediction(item.id, "", output, item.answer, right=False, left_out=(), seen=1, verdicts=verdicts,
                               accepted=item.accepted))  # fmt: skip
    rows = {row.metric: row for row in figures(task, made)}
    # The third: 0.4 x 0.2 shared, of 0.4 x 0.45 each.
    third = 0.08 / (0.18 + 0.18 - 0.08)
    assert rows["iou"].value == pytest.approx((1 + 1 + third + 0) / 4, abs=1e-6)
    assert rows["iou@0.5"].value == pytest.approx(2 / 4)
    assert rows["iou"].unparsed == rows["iou@0.5"].unparsed == 1
    (read,) = read_numbers(outputs[0])
    assert Square(200, 100).pixels(read) == pytest.approx((20, 10, 100, 100))


def test_a_task_of_points_from_its_file(tmp_path):
    answer = {"keypoints": {"nose": [20, 10], "left eye": None}, "box": [0, 0, 100, 100], "area": 4000}
    task = load_task(write_task(tmp_path, [{"answer": answer}], metrics=["oks", "pck@0.1"]))
    assert json.loads(task.items[0].answer) == {
        "points": {"nose": [0.1, 0.3], "left eye": []},
        "box": [0.0, 0.25, 0.5, 0.75],
        "area": 0.1,
    }
    assert score("oks", "nose [0.10, 0.30]", task.items[0].answer, choices={}) == pytest.approx(1.0)


BAD = [
    ({"answer": {"box": [1, 2, 3]}}, "iou", "'box' must be 4 numbers, not [1, 2, 3]."),
    ({"answer": {"boxx": [1, 2, 3, 4]}}, "iou", "'boxx' is not a known key of an answer with pixels."),
    ({"answer": {"area": 3}}, "iou", "An answer with pixels has 'box' or 'keypoints'."),
    ({"answer": {"box": [0, 0, 300, 9]}}, "iou",
     "The box [0.0, 0.0, 300.0, 9.0] lies outside its picture of 200 x 100 pixels."),
    ({"answer": {"box": [0, 0, 9, 9], "align": "left"}}, "iou", "'align' is center or corner, not 'left'."),
    ({"answer": {"keypoints": 3, "box": [0, 0, 9, 9]}}, "oks",
     "'keypoints' is a mapping of names to points, or a list of points."),
    ({"answer": {"box": [0, 0, 9, 9]}, "inputs": []}, "iou",
     "An answer with pixels needs the 'size' of its picture, and there is no picture."),
    ({"answer": "left"}, "iou",
     "question 0 cannot be scored by 'iou'. The reference has 0 boxes, and one is scored: left"),
    ({"answer": {"box": [9, 9, 9, 9]}}, "iou",
     "question 0 cannot be scored by 'iou'. The reference is a box without an area: "
     "[0.045000, 0.295000, 0.045000, 0.295000]"),
    ({"answer": "[0.1, 0.1]"}, "oks",
     "question 0 cannot be scored by 'oks'. The reference is not a JSON object with 'points': [0.1, 0.1]"),
    ({"answer": {"keypoints": {"nose": [1, 2]}}}, "oks",
     "question 0 cannot be scored by 'oks'. OKS needs the 'area' or the 'box' of what the points belong to."),
    ({"answer": {"keypoints": {"tail": [1, 2]}, "area": 9}}, "oks",
     "question 0 cannot be scored by 'oks'. OKS needs 'sigmas', one for each point, where the points are not the 17 "
     "of COCO in order or by name."),
    ({"answer": {"keypoints": {"tail": [1, 2]}, "area": 9}}, "pck@0.2",
     "question 0 cannot be scored by 'pck@0.2'. PCK needs the 'box' of what the points belong to."),
    ({"answer": {"keypoints": [[1, 2, 0]], "area": 9}}, "pck@0.2",
     "question 0 cannot be scored by 'pck@0.2'. The reference has no labelled point, or one that is not two numbers: "
     '{"points": [[]], "area": 0.000225}'),
]  # fmt: skip


@pytest.mark.parametrize(("question", "metric", "sentence"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_references_that_cannot_be_scored(tmp_path, question, metric, sentence):
    path = write_task(tmp_path, [question], metric=metric)
    with pytest.raises(RequestError) as caught:
        load_task(path)
    assert caught.value.message == f"{path}:2: {sentence}"


def test_a_metric_that_is_misspelt(tmp_path):
    with pytest.raises(RequestError, match=r"No metric is called 'iou@0\.6'") as caught:
        load_task(write_task(tmp_path, [{"answer": "[0, 0, 1, 1]"}], metric="iou@0.6"))
    assert "iou@0." in caught.value.hint
