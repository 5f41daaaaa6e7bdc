"""What a picture's label says is what its pixels show, read without the renderer's help."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from mcompose.lab.pictures.ink import CELL, Style, blank
from mcompose.lab.pictures.picture import KINDS, Picture
from mcompose.lab.pictures.questions import TASKS, as_text, questions_of
from mcompose.lab.pictures.render import RENDERERS, render, render_many
from mcompose.lab.pictures.sources import load_sources
from mcompose.lab.pictures.words import VOCABULARY
from mcompose.lab.randomness import generator_for

pytestmark = pytest.mark.skipif(find_spec("vega_datasets") is None, reason="vega-datasets is not installed")


def many(kind: str, count: int = 40) -> list[Picture]:
    generator = generator_for(7, "labels", kind)
    return [render(kind, generator) for _ in range(count)]


def coloured(picture: Picture, colour: list[int]) -> np.ndarray:
    return (np.asarray(picture.image) == np.array(colour, dtype=np.uint8)).all(axis=-1)


def test_bars_are_as_high_as_their_values() -> None:
    for picture in many("bar"):
        _, up, _, down = picture.shapes["plot"]
        filled = coloured(picture, picture.shapes["colours"][0])
        for place, value in enumerate(picture.truth["values"]):
            slot = filled[:, CELL * (1 + 2 * place) : CELL * (3 + 2 * place)]
            tall = 0 if not slot.any() else down - int(np.flatnonzero(slot.any(axis=1))[0])
            read = tall * picture.shapes["top"] / (down - up)
            assert abs(read - value) <= 0.5 * picture.shapes["top"] / (down - up) + 1e-9
            assert round(read) == value


def test_lines_pass_through_their_values() -> None:
    for picture in many("line"):
        _, up, _, down = picture.shapes["plot"]
        filled = coloured(picture, picture.shapes["colours"][0])
        for place, value in enumerate(picture.truth["values"]):
            x = CELL * (2 + 2 * place)
            y = down - round((down - up) * value / picture.shapes["top"])
            square = filled[max(0, y - 1) : y + 2, x - 1 : x + 2]
            assert square.mean() > 0.6  # a written value or the axis may cover some of the point


def test_pie_sectors_have_their_shares_of_the_disc() -> None:
    for picture in many("pie"):
        cx, cy = picture.shapes["centre"]
        radius = picture.shapes["radius"]
        down, across = np.mgrid[: picture.image.height, : picture.image.width]
        inside = (across - cx) ** 2 + (down - cy) ** 2 <= (radius - 1) ** 2
        areas = np.array([(coloured(picture, c) & inside).sum() for c in picture.shapes["colours"]])
        read = 100 * areas / areas.sum()
        assert np.abs(read - picture.truth["values"]).max() < 2.5  # half a step
        assert sum(picture.truth["values"]) == 100
        # Clockwise from the top: the middle of each sector has its colour.
        turned = 2 * np.pi * (np.cumsum(picture.truth["values"]) - np.array(picture.truth["values"]) / 2) / 100
        pixels = np.asarray(picture.image)
        for angle, colour in zip(turned, picture.shapes["colours"], strict=True):
            x, y = round(cx + 0.6 * radius * np.sin(angle)), round(cy - 0.6 * radius * np.cos(angle))
            assert pixels[y, x].tolist() == colour


def ink_in(crop: np.ndarray) -> np.ndarray:
    """Darkness or lightness against the commonest value, 0 to 1."""
    grey = crop.astype(np.float64).mean(axis=-1)
    values, counts = np.unique(grey, return_counts=True)
    away = np.abs(grey - values[counts.argmax()])
    return away / max(away.max(), 1.0)


@pytest.fixture(scope="module")
def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Every number in every face and shift, as a reader of cells knows them."""
    rows, labels = [], []
    for face in ("", "DejaVuSans.ttf", "DejaVuSerif.ttf"):
        for shift in range(2):
            style = Style((255,) * 3, (0,) * 3, (255,) * 3, (), face, (0, shift))
            for number in range(100):
                sheet = blank(3 * CELL, 3 * CELL, style)
                sheet.write(str(number), (1, 1))
                rows.append(ink_in(np.asarray(sheet.image)[CELL : 2 * CELL, CELL : 2 * CELL]).ravel())
                labels.append(number)
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize("kind", ["table", "page", "formula"])
def test_written_numbers_can_be_read_back(kind: str, numbers: tuple[np.ndarray, np.ndarray]) -> None:
    known, labels = numbers
    right = []
    for picture in many(kind, 25):
        pixels = np.asarray(picture.image)
        for mark in picture.marks:
            if "tens" in mark.fields and picture.shapes.get("rules") not in {"all", "stripes"}:
                left, top, right_edge, bottom = mark.box
                seen = ink_in(pixels[top:bottom, left:right_edge]).ravel()
                found = labels[np.square(known - seen).sum(axis=1).argmin()]
                right.append(found == int(mark.fields["tens"] + mark.fields["units"]))
    assert len(right) > 40
    assert np.mean(right) > 0.93  # a rule or a root's roof may run through a cell


def test_shapes_have_colour_and_place() -> None:
    for picture in many("shapes"):
        pixels = np.asarray(picture.image).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        away = np.abs(pixels - ground).max(axis=-1) > 40
        down, across = np.nonzero(away)
        if picture.truth["side"]:
            middle = np.array([across.mean(), down.mean()]) - 48
            sides = {"left": -middle[0], "right": middle[0], "top": -middle[1], "bottom": middle[1]}
            assert max(sides, key=lambda side: sides[side]) == picture.truth["side"]
        assert len(picture.shapes["boxes"]) == picture.truth["count"]
        for left, top, right, bottom in picture.shapes["boxes"]:
            assert away[max(0, top) : bottom, max(0, left) : right].mean() > 0.2


@pytest.mark.parametrize("kind", list(RENDERERS))
def test_same_generator_same_picture(kind: str) -> None:
    one, other = (render(kind, generator_for(3, "again")) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.label() == other.label()
    third = render(kind, generator_for(4, "again"))
    assert third.image.tobytes() != one.image.tobytes()


@pytest.mark.parametrize("kind", list(RENDERERS))
def test_marks_lie_inside_and_every_word_is_known(kind: str) -> None:
    for picture in many(kind, 30):
        assert picture.kind == kind
        assert picture.domain == KINDS[kind]
        for mark in picture.marks:
            left, top, right, bottom = mark.box
            assert 0 <= left < right <= picture.image.width
            assert 0 <= top < bottom <= picture.image.height
        words = as_text(picture).split()
        for question in questions_of(picture):
            assert question.task in TASKS
            words += question.text.split() + question.answer.split()
        assert set(words) <= set(VOCABULARY)


def test_no_question_has_two_answers() -> None:
    for kind in RENDERERS:
        for picture in many(kind, 30):
            asked = [question.text for question in questions_of(picture)]
            assert len(asked) == len(set(asked))


def test_answers_follow_from_the_truth() -> None:
    picture = next(p for p in many("bar") if p.truth["values"].count(max(p.truth["values"])) == 1)
    answers = {question.text: question.answer for question in questions_of(picture)}
    names, values = picture.truth["names"], picture.truth["values"]
    for name, value in zip(names, values, strict=True):
        assert answers[f"value of {name}"].replace(" ", "") == f"{value:02d}"
    assert answers["which is largest ?"] == names[int(np.argmax(values))]
    formula = Picture(picture.image, "formula", {
        "terms": [{"form": "fraction", "numbers": [12, 5]}, {"form": "power", "numbers": [30, 2]}], "operator": "-",
    })  # fmt: skip
    assert questions_of(formula)[0].answer == "\\frac { 1 2 } { 5 } - 3 0 ^ { 2 }"


def test_figures_are_means_of_real_records() -> None:
    cars = next(source for source in load_sources() if source.name == "cars")
    held = cars.values["toyo", "mpg"]
    assert held.min() == 19.0  # toyota corona mark ii (sw) and its like, in miles per gallon
    test = held[3::4]
    train = np.delete(held, np.arange(3, len(held), 4))
    for split, own in (("train", train), ("test", test)):
        drawn = [cars.figure("toyo", "mpg", split=split, generator=generator_for(i, "mean")) for i in range(50)]
        assert min(drawn) >= np.floor(own.min())
        assert max(drawn) <= np.ceil(own.max())


def test_test_side_shows_other_records_and_other_pictures() -> None:
    for source in load_sources():
        for held in source.values.values():
            assert len(held) >= 4  # both sides have something
    train = {p.image.tobytes() for p in render_many("table", 300, seed=0, purpose="pool")}
    test = [p.image.tobytes() for p in render_many("table", 300, seed=0, purpose="tasks", split="test")]
    assert not train.intersection(test)


@pytest.mark.parametrize("kind", ["bar", "line", "pie", "table", "page", "formula"])
def test_every_word_of_an_answer_stands_in_the_mark_that_it_is_read_from(kind: str) -> None:
    for picture in many(kind, 30):
        for question in questions_of(picture):
            if question.task == "general-kind":
                assert question.sources == ()
                continue
            words = question.answer.split()
            assert len(question.sources) == len(words)
            for word, source in zip(words, question.sources, strict=True):
                if source >= 0:
                    assert word in picture.marks[source].fields.values()
                else:
                    assert not word.isdigit()
