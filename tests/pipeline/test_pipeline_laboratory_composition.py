"""The composition report on a family of a few steps: what is merged with what, searched, and not repeated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from mcompose.errors import RequestError
from mcompose.lab import DataSettings, FitSettings, NumbersSettings, make_numbers
from mcompose.modalities import MODALITIES
from mcompose.pipeline.lab import run as laboratory
from mcompose.pipeline.lab.composition import decoupled_donors as laboratory_decoupled
from mcompose.pipeline.lab.composition import run as laboratory_composition
from mcompose.pipeline.lab.composition.decoupled_donors import decoupled_donors
from mcompose.pipeline.lab.composition.run import Plan, composition_run
from mcompose.pipeline.lab.composition.variants import VARIANTS, searched_form, write_recipe
from mcompose.pipeline.write import merge
from mcompose.recipe import load_recipe

TINY = NumbersSettings(
    width=16, layers=2, pool=20, checked=20,
    base=FitSettings(2, 1e-3, 4),
    encoder={modality: FitSettings(2, 1e-3, 4) for modality in MODALITIES},
    projector=FitSettings(2, 1e-3, 4),
    full=FitSettings(2, 1e-2, 4),
    data=DataSettings(test_media=10, train_media=10, single=8, joint=12),
)  # fmt: skip
pytestmark = pytest.mark.timeout(600)  # one small training and some thirty merges
Q = "layers.0.self_attn.q_proj"
NAMES = {variant.name: variant for variant in VARIANTS}
PLAN = Plan(
    TINY,
    (NAMES["base"], NAMES["naivemc"], NAMES["damc"]),
    trials=2,
    grown=(NAMES["damc"],),
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_numbers(tmp_path_factory.mktemp("lab") / "numbers-0", seed=0, settings=TINY, workers=0)


@pytest.fixture(scope="module")
def found(family):
    return composition_run(family, PLAN)


def matrix(folder, name, group=""):
    tensors = load_file(folder / "model.safetensors")
    kinds = {"": f"{Q}.weight", "group": f"{Q}.groups.{name}.weight"}
    return next(values for key, values in tensors.items() if key.endswith(kinds[group]) and "tower" not in key)


def test_lab_composition_measures_every_variant_with_and_without_search(found) -> None:
    plain = ["base", "naivemc", "damc"]
    assert [name for name in found if not name.startswith(("donor:", "text-ceiling")) and " - " not in name] == [
        *plain,
        *(f"{name}+search" for name in plain[1:]),
    ]
    assert {f"donor:{name}{kind}" for name in MODALITIES for kind in ("", "-decoupled")} <= set(found)
    for name in plain:
        assert {"retention-image", "retention-text", "joint-2", "joint-4", "merge-seconds"} <= set(found[name])
    assert found["damc"]["train-seconds"] > 0
    assert found["damc+search"]["search-seconds"] > 0
    gap = found["damc"]["joint-common-3"] - found["naivemc"]["joint-common-3"]
    assert found["damc - naivemc"]["joint-common-3"] == gap


def test_lab_composition_of_all_donors_is_what_its_own_questions_about_four_are_asked(found) -> None:
    assert found["damc"]["joint-own-4"] == pytest.approx(found["damc"]["joint-common-4"])
    assert {"joint-own-2", "joint-own-3"} <= set(found["damc"])


def test_lab_composition_counts_what_decoupling_costs(found) -> None:
    width = TINY.width
    per_group = TINY.layers * (4 * width * width + 3 * width * 3 * width)
    assert found["naivemc"]["extra-parameters"] == found["naivemc+search"]["extra-parameters"] == 0
    assert found["damc"]["extra-parameters"] == found["damc+search"]["extra-parameters"] == 4 * per_group


def test_lab_composition_takes_groups_whole_and_averages_text(family, found) -> None:
    folder = family.folder / "composition" / "recipes"
    base = matrix(family.base, "")
    merge(write_recipe(family, NAMES["damc-convert"], folder / "damc-convert.yaml", donors=family.donors))
    for variant, donors in (("damc", family.folder / "decoupled"), ("damc-convert", family.folder)):
        for name in MODALITIES:
            own = matrix(donors / name, name, "group" if variant == "damc" else "")
            assert np.array_equal(matrix(folder / variant, name, "group"), own)
        texts = [matrix(donors / name, name) for name in MODALITIES]
        np.testing.assert_allclose(matrix(folder / variant, ""), np.mean(texts, axis=0), atol=1e-6)
    assert np.array_equal(matrix(folder / "base", ""), base)
    shared = [matrix(family.donors[name], name) for name in MODALITIES]
    np.testing.assert_allclose(matrix(folder / "naivemc", ""), np.mean(shared, axis=0), atol=1e-6)


def test_lab_decoupled_donors_start_from_the_shared_ones_encoder(family, found) -> None:
    for name in MODALITIES:
        tensors = load_file(family.folder / "decoupled" / name / "model.safetensors")
        shared = load_file(family.donors[name] / "model.safetensors")
        tower = [key for key in shared if "_tower." in key]
        assert tower
        for key in tower:
            mine = [
                values
                for other, values in tensors.items()
                if other.endswith(key.partition("_tower.")[2]) and "towers" in other
            ]
            assert any(np.array_equal(values, shared[key]) for values in mine if values.shape == shared[key].shape), key
        assert not np.array_equal(matrix(family.folder / "decoupled" / name, name), matrix(family.base, ""))


def test_lab_composition_run_again_trains_searches_and_asks_nothing(family, found, monkeypatch) -> None:
    def forbidden(*args, **kwargs):
        raise AssertionError("this was done before")

    monkeypatch.setattr(laboratory_composition, "evaluate", forbidden)
    monkeypatch.setattr(laboratory_decoupled, "train_donor", forbidden)
    again = composition_run(family, PLAN)
    timed = ("merge-seconds",)
    assert {v: {m: x for m, x in s.items() if m not in timed} for v, s in again.items()} == {
        v: {m: x for m, x in s.items() if m not in timed} for v, s in found.items()
    }


def test_lab_decoupled_donors_refuse_other_settings(family) -> None:
    with pytest.raises(laboratory_decoupled.OutputError, match="other settings"):
        decoupled_donors(family, replace(TINY, pool=30))


def test_lab_searched_naivemc_is_free_task_arithmetic_at_the_average(family, tmp_path) -> None:
    form = searched_form(NAMES["naivemc"], sources=4)
    recipe = load_recipe(write_recipe(family, form, tmp_path / "naivemc.yaml", donors=family.donors)).recipe
    assert (recipe.merge.method, dict(recipe.merge.weights)) == ("task_arithmetic", dict.fromkeys(MODALITIES, 0.25))
    assert searched_form(NAMES["base"], sources=4) is None
    assert searched_form(NAMES["damc"], sources=4) is NAMES["damc"]


def test_lab_reports_name_what_there_is(tmp_path) -> None:
    with pytest.raises(RequestError, match="'compositions' is not a lab report") as told:
        laboratory.report("compositions", tmp_path, seeds=1)
    assert "composition" in told.value.hint
    assert list(tmp_path.iterdir()) == []


def test_lab_composition_report_brings_seeds_together(found, tmp_path, monkeypatch) -> None:
    asked = []

    def made(name, folder, *, seed):
        asked.append((name, folder.name, seed))
        return laboratory.MadeFamily(seed)

    second = {v: {m: x + 0.5 for m, x in s.items()} for v, s in found.items()}
    monkeypatch.setattr(laboratory, "make", made)
    monkeypatch.setattr(laboratory_composition, "composition_run", lambda family, plan: [found, second][family])
    report = laboratory.report("composition", tmp_path, seeds=2)
    assert asked == [("numbers-apart", "numbers-apart-0", 0), ("numbers-apart", "numbers-apart-1", 1)]
    (row,) = [row for row in report.rows if (row.variant, row.metric) == ("damc", "joint-3")]
    assert row.mean == pytest.approx(found["damc"]["joint-3"] + 0.25)
    assert (row.std, row.n) == (pytest.approx(0.5 / 2**0.5), 2)
    header, lines = report.table()
    assert header[:2] == ("variant", "retention-mean")
    assert "damc - naivemc" in [line[0] for line in lines]
    assert report.to_dict()["name"] == "composition"
    assert report.plot.is_file()
