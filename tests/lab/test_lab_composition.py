"""The composition report's figures against hand-computed ones, and what its questions show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcompose.lab import DataSettings, LabFamily, Row, wide_table
from mcompose.lab.composition import Subset, differences, pool_scores, subsets, summaries
from mcompose.lab.composition_plot import plot_composition
from mcompose.lab.media import load_digits
from mcompose.lab.numbers.tasks import write_data, write_validation
from mcompose.lab.randomness import generator_for
from mcompose.modalities import MODALITIES

SIZES = DataSettings(test_media=40, train_media=10, single=20, joint=60)


def scores(**more):
    joint = {"joint-sum": 0.1, "joint-same": 0.3, "joint-larger": 0.2, "joint-common-2": 0.6}
    return joint | {"joint-common-3": 0.7, "joint-common-4": 0.8, "text-mean": 0.9} | more


def test_lab_composition_retention_is_over_the_shared_donor_and_joint_counts_media() -> None:
    found = {
        "text-ceiling": scores(**{"text-mean": 1.0}),
        "donor:image": scores(**{"image-name": 0.8, "image-size": 1.0, "image-size_seen": 0.0}),
        "naivemc": scores(**{"image-name": 0.4, "image-size": 0.5}),
    }
    made = summaries(found, donors=["image"])
    assert made["naivemc"]["retention-image"] == pytest.approx(0.5)
    assert made["naivemc"]["retention-mean"] == pytest.approx(0.5)
    assert made["naivemc"]["retention-text"] == pytest.approx(0.9)
    assert made["donor:image"]["retention-image"] == 1.0
    assert made["naivemc"]["joint-2"] == pytest.approx((0.1 + 0.3 + 0.2 + 0.6) / 4)
    assert (made["naivemc"]["joint-3"], made["naivemc"]["joint-4"]) == (0.7, 0.8)
    assert "retention-image" not in made["text-ceiling"]


def test_lab_composition_differences_pair_what_both_have() -> None:
    found = {
        "damc": {"joint-2": 0.9, "image-name": 1.0, "joint-own-2": 0.5},
        "naivemc": {"joint-2": 0.7, "image-name": 0.5},
    }
    assert differences(found, [("damc", "naivemc"), ("damc", "absent")]) == {
        "damc - naivemc": {"joint-2": pytest.approx(0.2)}
    }


def test_lab_composition_pools_by_questions() -> None:
    parts = [
        (Subset(("a", "b"), Path(), 30), 0.5),
        (Subset(("a", "c"), Path(), 10), 0.9),
        (Subset(("a", "b", "c"), Path(), 5), 0.2),
    ]
    assert pool_scores(parts) == {"joint-own-2": pytest.approx(0.6), "joint-own-3": pytest.approx(0.2)}


@pytest.fixture(scope="module")
def digits():
    return load_digits(generator=generator_for(0, "digits"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("numbers") / "data"
    write_data(folder, SIZES, seed=0, digits=digits)
    return folder


def rows_of(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def test_lab_composition_subsets_are_all_commonality_questions_once(data, tmp_path) -> None:
    tasks = {f"joint-common-{k}": data / f"joint-common-{k}.jsonl" for k in (2, 3, 4)}
    family = LabFamily("numbers", data.parent, data, dict.fromkeys(MODALITIES, data), tasks, data, {})
    made = subsets(family, tmp_path / "deep" / "subsets")
    assert [len(subset.names) for subset in made] == [2] * 6 + [3] * 4 + [4]
    for count in (2, 3, 4):
        mine = [row for subset in made if len(subset.names) == count for row in rows_of(subset.task)]
        assert sorted(int(row["id"]) for row in mine) == list(range(60))
        assert sum(subset.count for subset in made if len(subset.names) == count) == 60
    for subset in made:
        for row in rows_of(subset.task):
            assert {entry["modality"] for entry in row["inputs"]} == set(subset.names)
            assert all((subset.task.parent / entry["path"]).resolve().is_relative_to(data) for entry in row["inputs"])
            assert all((subset.task.parent / entry["path"]).is_file() for entry in row["inputs"])


def test_lab_validation_asks_of_one_medium_and_shows_no_test_image(data, tmp_path, digits) -> None:
    files = write_validation(tmp_path / "validation", SIZES, seed=0, digits=digits)
    assert [file.stem for file in files] == [f"validation-{m}" for m in (*MODALITIES, "text")]
    for file in files:
        assert len(rows_of(file)) == 10
        for row in rows_of(file):
            (entry,) = row["inputs"]
            assert file.stem == f"validation-{entry['modality']}"
            assert "path" not in entry or int(Path(entry["path"]).stem) % 10 == row["numbers"][0]

    def images(folder):
        return {np.asarray(Image.open(path)).tobytes() for path in (folder / "media" / "image").glob("*.png")}

    assert len(images(tmp_path / "validation")) >= 39  # a digit may look like another to the last pixel
    assert not images(tmp_path / "validation") & images(data)
    assert not images(tmp_path / "validation") & images(data / "train")


def test_lab_wide_table_has_one_line_a_variant() -> None:
    rows = [
        Row("a", "x", 0.5, 0.1, 2),
        Row("a", "y", 123456.0, 0.0, 2),
        Row("b", "x", 0.25, 0.0, 1),
        Row("c", "z", 1.0, 0.0, 1),
    ]
    header, lines = wide_table(rows, ["x", "y"])
    assert header == ("variant", "x", "y", "n")
    assert lines == [("a", "0.500 +- 0.100", "123456", "2"), ("b", "0.250", "", "1")]


def test_lab_composition_plot_draws_both_forms_and_the_margin(tmp_path) -> None:
    rows = [Row(name, "joint-2", 0.5, 0.1, 2) for name in ("naivemc", "naivemc+search")]
    rows += [Row("damc - naivemc", f"joint-common-{k}", 0.1 * k, 0.02, 2) for k in (2, 3, 4)]
    plot_composition(rows, tmp_path / "plot.png", title="composition")
    with Image.open(tmp_path / "plot.png") as opened:
        colours = {colour for _, colour in opened.convert("RGB").getcolors(maxcolors=1_000_000)}
    assert {(0x1B, 0x6C, 0xA8), (0xD9, 0x5F, 0x02), (0x1F, 0x77, 0xB4)} <= colours


def test_lab_composition_plot_tells_of_nothing_that_was_not_measured(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: drawn.append(self))
    rows = [Row("naivemc", "joint-2", 0.5, 0.1, 2)]
    rows += [Row("damc - naivemc", f"joint-common-{k}", 0.1, 0.02, 2) for k in (2, 3)]
    plot_composition(rows, tmp_path / "plot.png")
    panel, margin = drawn[0].axes
    assert panel.get_legend() is None
    assert margin.get_xticks().tolist() == [2, 3]
