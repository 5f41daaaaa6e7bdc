"""Tables against hand-computed means and spreads, and the plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mcompose.errors import RequestError
from mcompose.lab import LabFamily, Row, family_scores, plot_rows, recipe_text, table, table_json
from mcompose.recipe import load_recipe


def test_lab_table_means_and_spreads_by_hand() -> None:
    runs = [{"naivemc": {"joint-sum": 0.2}}, {"naivemc": {"joint-sum": 0.4}}, {"naivemc": {"joint-sum": 0.9}}]
    (row,) = table(runs)
    assert (row.variant, row.metric, row.n) == ("naivemc", "joint-sum", 3)
    assert row.mean == pytest.approx(0.5)
    assert row.std == pytest.approx((((0.3**2) + 0.1**2 + 0.4**2) / 2) ** 0.5)
    assert table(runs[:1])[0].std == 0.0
    shown = table_json("numbers", [row])
    assert json.loads(json.dumps(shown))["rows"][0].keys() == {"variant", "metric", "mean", "std", "n"}


def test_lab_table_refuses_unequal_seeds() -> None:
    with pytest.raises(RequestError, match="must have the same variants and metrics"):
        table([{"a": {"x": 1.0}}, {"a": {"y": 1.0}}])
    with pytest.raises(RequestError, match="at least one seed"):
        table([])


def fake_family(tmp_path: Path) -> LabFamily:
    names = ["image-name", "audio-name", "joint-sum", "joint-common-2", "text-name", "text-sum", "text-common-2"]
    tasks = {name: tmp_path / f"{name}.jsonl" for name in names}
    donors = {"image": tmp_path / "image", "audio": tmp_path / "audio"}
    return LabFamily("numbers", tmp_path, tmp_path / "base", donors, tasks, tmp_path / "recipe.yaml", {})


def test_lab_scores_ask_each_variant_what_it_can_take(tmp_path) -> None:
    asked = {}

    def evaluate(checkpoint, tasks, *, leave_out):
        asked[checkpoint.name] = ([task.stem for task in tasks], leave_out)
        rows = [{"task": task.stem, "metric": "exact_match", "value": 0.5} for task in tasks]
        if leave_out:
            rows.append({"task": "joint-sum", "metric": "joint_exact_match_seen", "value": 0.75})
        return rows

    scores = family_scores(fake_family(tmp_path), evaluate=evaluate, composed={"naivemc": tmp_path / "merged"})
    text = ["text-name", "text-sum", "text-common-2"]
    assert asked["base"] == (text, False)
    assert asked["image"] == (["image-name", "joint-sum", "joint-common-2", *text], True)
    assert asked["merged"][0] == ["image-name", "audio-name", "joint-sum", "joint-common-2", *text]
    assert list(scores) == ["text-ceiling", "donor:image", "donor:audio", "naivemc"]
    assert scores["donor:image"]["joint-sum_seen"] == 0.75
    assert scores["donor:image"]["joint-mean"] == 0.5
    assert {"joint-sum", "joint-common-2", "joint-mean", "text-mean"} <= scores["text-ceiling"].keys()
    assert "joint-name" not in scores["text-ceiling"]


def test_lab_plot_draws_every_bar(tmp_path) -> None:
    rows = [Row("donor:image", "joint-sum", 0.2, 0.05, 3), Row("naivemc", "joint-sum", 0.9, 0.02, 3)]
    rows += [Row("naivemc", "joint-mean", 0.9, 0.02, 3)]
    plot_rows(rows, tmp_path / "plot.png", title="numbers")
    with Image.open(tmp_path / "plot.png") as opened:
        colours = {colour for _, colour in opened.convert("RGB").getcolors(maxcolors=100_000)}
    assert {(0xD9, 0x5F, 0x02), (0xC6, 0xDB, 0xEF)} & colours
    assert opened.size[0] > 300


def test_lab_recipe_names_every_donor_beside_it(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text(["image", "audio"]), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    assert [source.name for source in recipe.sources] == ["image", "audio"]
    assert [source.model.path(tmp_path) for source in recipe.sources] == [tmp_path / "image", tmp_path / "audio"]
    assert recipe.base is not None
    assert recipe.base.path(tmp_path) == tmp_path / "base"
    assert recipe.merge.method == "naivemc"
