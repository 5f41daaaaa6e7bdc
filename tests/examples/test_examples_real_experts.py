"""Tables, labels and cuts of the example with document networks; slow: a smallest run of the whole example.

What needs the packages' networks takes them from `build/real/assets`, or fetches them (slow tests alone).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.real.expert_tables import (
    CELL,
    DOMAINS,
    SPECIAL,
    draw_tables,
    markdown,
    render,
    rows_of,
    turns_of,
    write_data,
)
from mcompose.evaluate import load_task
from mcompose.evaluate.extraction import read_table
from mcompose.lab.pictures.sources import Figures

KNOWN = Figures(("Jan", "Feb"), ("high", "low"), ((8, 12), (45, 99)))


def test_a_table_is_written_and_asked_about_as_it_stands():
    assert rows_of(KNOWN) == [["", "high", "low"], ["Jan", "8", "12"], ["Feb", "45", "99"]]
    assert markdown(KNOWN) == "|  | high | low |\n| --- | --- | --- |\n| Jan | 8 | 12 |\n| Feb | 45 | 99 |"
    answers = {
        "What is high of Jan?": "8",
        "What is low of Jan?": "12",
        "What is high of Feb?": "45",
        "What is low of Feb?": "99",
        "Read the line of Jan.": "Jan 8 12",
        "Read the line of Feb.": "Feb 45 99",
        "How many rows of numbers are there?": "2",
        "How many columns of numbers are there?": "2",
        "Write the table.": markdown(KNOWN),
    }
    asked = {}
    for seed in range(40):
        turns = turns_of(KNOWN, generator=np.random.default_rng(seed))
        assert [turn.kind for turn in turns] == ["value", "value", "line", "count", "table"]
        assert turns[0].question != turns[1].question
        asked |= {turn.question: turn.answer for turn in turns}
    assert asked == answers


def test_what_is_written_is_a_table_with_these_cells():
    read = read_table(markdown(KNOWN)) or ()
    assert [[cell.text for cell in row] for row in read] == rows_of(KNOWN)


def test_ink_lies_in_the_cells_that_have_words():
    dark = 255 - np.asarray(render(KNOWN, ruled=False))[..., 0].astype(int)
    assert dark.shape == (192, 192)
    inked = [[int(dark[48 * i : 48 * i + 48, CELL * j : CELL * j + CELL].sum()) for j in range(3)] for i in range(4)]
    assert [[ink > 0 for ink in line] for line in inked] == [[False, True, True], [True] * 3, [True] * 3, [False] * 3]
    assert inked[1][1] < inked[1][2]  # "8" has less ink than "12"


def test_rules_are_what_the_two_ways_of_drawing_differ_in():
    plain, ruled = (np.asarray(render(KNOWN, ruled=way))[..., 0] for way in (False, True))
    changed = np.argwhere(plain != ruled)
    on_border = {(int(y) % 48 in (0, 47)) or (int(x) % CELL in (0, CELL - 1)) for y, x in changed}
    assert on_border == {True}
    assert (ruled[0, : 3 * CELL] == 0).all()
    assert (ruled[3 * 48 + 1 :] == 255).all()  # no cell below the last row


def test_test_numbers_come_from_records_of_their_own_and_a_seed_decides_everything():
    tables = [draw_tables(20, split="train", seed=3, domain=domain) for domain in SPECIAL]
    assert tables[0] == draw_tables(20, split="train", seed=3, domain="lines")
    assert tables[0] != tables[1]
    assert tables[0] != draw_tables(20, split="train", seed=4, domain="lines")
    assert tables[0] != draw_tables(20, split="test", seed=3, domain="lines")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Two of easy-vqa's questions, as it files them."""
    for split in ("train", "test"):
        folder = tmp_path / "vqa/data" / split
        (folder / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(folder / "images/0.png")
        rows = [["what color is the shape?", "red", 0], ["is there a circle?", "no", 0]]
        (folder / "questions.json").write_text(json.dumps(rows))
    return tmp_path / "vqa/data/train/questions.json"


def test_tasks_ask_about_the_pictures_that_they_name(tmp_path, shapes):
    made = write_data(tmp_path / "data", shapes, tables=2, asked=3, seed=0)
    kinds = ["value", "line", "count", "table"]
    named = ["general-shape", *(f"{domain}-{kind}" for domain in SPECIAL for kind in kinds)]
    assert [path.stem for path in made["tasks"]] == named
    labels = [json.loads(line) for line in (tmp_path / "data/test/labels.jsonl").read_text().splitlines()]
    # easy-vqa's stand-in has one picture; it belongs to the router's class "none"
    assert [row["domain"] for row in labels] == ["none", *["lines"] * 3, *["tables"] * 3]
    assert all((tmp_path / "data/test" / row["path"]).is_file() for row in labels)
    drawn = draw_tables(3, split="test", seed=0, domain="tables")
    task = load_task(tmp_path / "data/test/tables-table.jsonl")
    assert task.metrics == ("teds", "teds_structure", "edit_similarity")
    assert [item.answer for item in task.items] == [markdown(figures) for figures in drawn]
    for item, figures in zip(task.items, drawn, strict=True):
        assert item.inputs[0].path is not None
        with Image.open(item.inputs[0].path) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(render(figures, ruled=True)))
        assert item.prompt(item.inputs) == "<image> Write the table."


def test_records_show_a_picture_once_and_the_first_stage_asks_for_tables_alone(tmp_path, shapes):
    made = write_data(tmp_path / "data", shapes, tables=2, asked=1, seed=0)
    for domain, first, second in zip(DOMAINS, made["1"], made["2"], strict=True):
        for path, turns in ((first, 2 if domain == "general" else 1), (second, 2 if domain == "general" else None)):
            for row in map(json.loads, path.read_text().splitlines()):
                said = [turn["value"] for turn in row["conversations"]]
                assert (path.parent / row["image"]).is_file()
                assert [text.count("<image>") for text in said] == [1] + [0] * (len(said) - 1)
                assert turns is None or len(said) == 2 * turns
    rows = [json.loads(line) for line in made["1"][1].read_text().splitlines()]
    drawn = draw_tables(2, split="train", seed=0, domain="lines")
    assert [row["conversations"][1]["value"] for row in rows] == [markdown(figures) for figures in drawn]


def _recogniser(path: Path) -> None:
    """A stand-in: one convolution over 48 pixels' height, a value of the recogniser's name, then a classifier."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from examples.real.expert_nets import CUT

    draws = np.random.default_rng(0)
    weights = {
        "kernel": draws.normal(size=(120, 3, 48, 8)).astype(np.float32) / 20,
        "shape": np.array([0, 120, -1], np.int64),
        "letters": draws.normal(size=(120, 7)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["map"], strides=[48, 8]),
        helper.make_node("Reshape", ["map", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], [CUT], perm=[0, 2, 1]),
        helper.make_node("MatMul", [CUT, "letters"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 48, "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "t", 7])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), str(path))


def _whole_with_output(path: Path, value: str, given: dict[str, np.ndarray]) -> np.ndarray:
    """The whole graph's own value, as a further output."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    whole = onnx.load(str(path))
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    return runtime.InferenceSession(whole.SerializeToString()).run([value], given)[0]


def _check_cut(source: Path, target: Path, *, atol: float) -> None:
    """The cut graph on whole pictures is the whole graph on their lines, four steps joined."""
    runtime = pytest.importorskip("onnxruntime")
    from examples.real.expert_nets import CUT, cut_lines

    cut_lines(source, target)
    pixels = np.random.default_rng(1).normal(size=(2, 3, 192, 192)).astype(np.float32)
    found = runtime.InferenceSession(str(target)).run(None, {"pixel_values": pixels})[0]
    lines = [pixels[item, :, 48 * line : 48 * line + 48] for item in range(2) for line in range(4)]
    expected = _whole_with_output(source, CUT, {"x": np.stack(lines)})
    assert expected.shape == (8, 24, 120)
    assert found.shape == (2, 24, 480)
    assert np.abs(found[1, 6 * 2 + 3] - expected[4 + 2, 12:16].reshape(480)).max() < atol  # 2nd picture, 3rd line
    assert np.abs(found - expected.reshape(2, 24, 480)).max() < atol


def test_a_cut_graph_gives_the_whole_graphs_values_line_by_line(tmp_path):
    onnx = pytest.importorskip("onnx")
    source = tmp_path / "net.onnx"
    _recogniser(source)
    _check_cut(source, tmp_path / "cut.onnx", atol=1e-5)
    made = onnx.load(str(tmp_path / "cut.onnx")).graph
    assert [node.op_type for node in made.node].count("MatMul") == 0  # the classifier is gone, and its weights with it
    assert "letters" not in {tensor.name for tensor in made.initializer}


def test_a_cells_vectors_are_those_over_it():
    from examples.real.expert_measures import cell_features

    def places(rows: int, columns: int, row: int, column: int) -> list[list[int]]:
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
        return cell_features(grid, row, column).reshape(-1, 2).tolist()

    assert places(4, 6, 2, 1) == [[2, 2], [2, 3]]  # the recogniser: two vectors a cell, in its line
    assert places(4, 6, 3, 2) == [[3, 4], [3, 5]]
    wide = places(16, 16, 1, 1)  # SLANet: 12 pixels a vector
    assert (wide[0], wide[-1], len(wide)) == ([4, 5], [7, 10], 4 * 6)
    coarse = places(8, 8, 1, 2)  # the ViT: 24 pixels a vector
    assert (coarse[0], coarse[-1], len(coarse)) == ([2, 5], [3, 7], 2 * 3)


def test_ridge_regression_finds_digits_that_are_linear_in_the_features():
    from examples.real.expert_measures import ridge

    draws = np.random.default_rng(0)
    digits, tested = draws.integers(10, size=300), draws.integers(10, size=50)
    ways = draws.normal(size=(10, 64))
    seen, held = (ways[own] + 0.1 * draws.normal(size=(len(own), 64)) for own in (digits, tested))
    assert (ridge(seen, digits, held) == tested).all()
    chance = (ridge(draws.normal(size=(300, 64)), digits, draws.normal(size=(50, 64))) == tested).mean()
    assert chance < 0.35


SLOW = (
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(3600),  # the first of them runs the example
)


def slow(what: Any) -> Any:
    for mark in SLOW:
        what = mark(what)
    return what


@slow
def test_the_recognisers_cut_is_the_recogniser_and_reads_what_is_drawn(tmp_path):
    from examples.real.assets import fetch
    from examples.real.expert_nets import read_lines
    from examples.real.experts import FOLDER

    source = fetch("ocr", FOLDER / "assets")
    _check_cut(source, tmp_path / "cut.onnx", atol=1e-3)
    assert (tmp_path / "cut.onnx").stat().st_size < 0.6 * source.stat().st_size  # 18,710 letters' weights are gone
    for figures in [KNOWN, *draw_tables(5, split="test", seed=0, domain="lines")]:
        read = read_lines(source, np.asarray(render(figures, ruled=False)))
        assert read[: 1 + len(figures.rows)] == [" ".join(filter(None, line)) for line in rows_of(figures)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """A smallest run; what training costs is kept in `build/real` for the next one."""
    from examples.real.experts import FOLDER, QUICK, measure

    return measure(FOLDER, QUICK)


@pytest.fixture(scope="module")
def trained(found: dict[str, Any]) -> Path:
    return Path(found["runs"]["experts"]["2"]["checkpoint"])


@slow
def test_experts_keep_the_packages_bytes(trained):
    from examples.real.assets import fetch
    from examples.real.experts import FOLDER

    config = json.loads((trained / "config.json").read_text())
    network = fetch("table", FOLDER / "assets").read_bytes()
    assert (trained / "experts/tables.onnx").read_bytes() == network
    digest = hashlib.sha256(network).hexdigest()
    assert config["experts"]["tables"]["onnx"]["sha256"] == {"experts/tables.onnx": digest}
    cut = (FOLDER / "experts/encoders/lines/model.onnx").read_bytes()
    assert (trained / "experts/lines.onnx").read_bytes() == cut
    rows = {row["name"]: row for row in json.loads((trained / "mcompose/ledger.json").read_text())["files"]}
    assert {name: (row["action"], row["part"]) for name, row in rows.items()} == {
        "experts/lines.onnx": ("copied", "expert:lines"),
        "experts/tables.onnx": ("copied", "expert:tables"),
    }
    assert rows["experts/tables.onnx"]["sha256"] == digest


@slow
def test_training_leaves_the_general_encoder_and_changes_the_language_model(found, trained):
    from safetensors.torch import load_file
    from transformers import LlavaForConditionalGeneration

    from examples.real.experts import FOLDER

    source = LlavaForConditionalGeneration.from_pretrained(FOLDER / "sees").model
    old, new = source.vision_tower.state_dict(), load_file(trained / "model.safetensors")
    assert len(old) == 223
    assert all(new[f"model.towers.general.vision_tower.{key}"].equal(value) for key, value in old.items())
    language = "layers.0.mlp.up_proj.weight"
    assert not new[f"model.language_model.{language}"].equal(source.language_model.state_dict()[language])
    ledger = json.loads((trained / "mcompose/ledger.json").read_text())
    actions = {row["name"]: row["action"] for row in ledger["tensors"]}
    assert actions["model.language_model.layers.0.mlp.up_proj.weight"] == "trained"
    assert actions["model.experts.lines.projector.layers.0.weight"] == "trained"
    encoder = [action for name, action in actions.items() if ".vision_tower." in name]
    assert set(encoder) == {"copied"}
    assert found["runs"]["experts"]["2"]["frozen"]["encoder:general"]["tensors"] == len(encoder)


@slow
def test_an_item_costs_its_experts_tokens_and_two_marks(found, trained):
    entries = json.loads((trained / "config.json").read_text())["experts"]
    assert {name: entry["tokens"] for name, entry in entries.items()} == {"lines": 24, "tables": 16}
    assert entries["tables"]["projector"]["grid"] == [16, 16]
    assert found["cost"]["tokens-lines"] == 24 + 2
    assert found["cost"]["tokens-tables"] == 16 + 2


@slow
def test_every_route_answers_every_task(found):
    routes = {"plain", "experts", "none", "lines", "tables"}
    assert set(found["scores"]) == routes
    names = {name for scores in found["scores"].values() for name in scores}
    assert {"lines-table teds", "tables-table teds_structure", "lines-value anls", "general-shape exact_match"} <= names
    for route in routes:
        assert set(found["scores"][route]) == names
        assert all(0 <= value <= 1 for value in found["scores"][route].values())
