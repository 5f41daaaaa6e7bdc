"""The composition report on a small stand-in of the smol family: the same metrics, routes and tables as elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
import lab_smol_stand_ins as stand_ins

from mcompose.errors import RequestError
from mcompose.lab import make_smol
from mcompose.lab.smol import make as smol_make
from mcompose.lab.smol import media as smol_media
from mcompose.lab.smol.questions import MODALITIES
from mcompose.pipeline.lab import run as laboratory
from mcompose.pipeline.lab.composition import run as laboratory_composition
from mcompose.pipeline.lab.composition.answers import mixed_results
from mcompose.pipeline.lab.composition.run import Plan, composition_run
from mcompose.pipeline.lab.composition.variants import SMOL_GROWN, VARIANTS
from mcompose.pipeline.measure import EvaluateOptions, evaluate

pytestmark = pytest.mark.timeout(600)
CHOSEN = tuple(one for one in VARIANTS if one.name in {"base", "naivemc", "damc"})
PLAN = Plan(stand_ins.TINY, CHOSEN, trials=0, grown=SMOL_GROWN[:1], batch=8, mixed=True, keep=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("smol")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smol_media, "speak", stand_ins.hummed)
        parts = stand_ins.small_parts(root / "base")
        patch.setattr(smol_make, "_real_parts", lambda settings, progress=None: parts)
        family = make_smol(root / "smol-0", settings=stand_ins.TINY)
        yield family, composition_run(family, PLAN)


def test_smol_report_has_the_metrics_of_the_composition_report(made) -> None:
    _, found = made
    for name in ("base", "naivemc", "damc"):
        wanted = {f"retention-{modality}" for modality in MODALITIES} | {
            "retention-text", "joint-2", "joint-3", "joint-mean", "joint-which", "joint-common-3", "merge-seconds",
            "search-seconds", "train-seconds", "extra-parameters",
        }  # fmt: skip
        assert wanted <= set(found[name])
        assert "joint-4" not in found[name]
        pairs = ("joint-same", "joint-which", "joint-common-2")
        assert found[name]["joint-2"] == pytest.approx(sum(found[name][metric] for metric in pairs) / 3)
    assert "joint-which" in found["text-ceiling"]
    assert {"joint-own-2", "joint-own-3"} <= set(found["naivemc"])
    assert found["naivemc"]["joint-own-3"] == found["naivemc"]["joint-3"]
    assert found["damc"]["train-seconds"] > 0
    width, layers = stand_ins.WIDTH, stand_ins.LAYERS
    heads = width // 2  # one of two key and value heads
    group = layers * (2 * width * width + 2 * width * heads + 3 * width * 2 * width)
    assert found["damc"]["extra-parameters"] == 3 * group
    assert not [name for name in found if "+search" in name]


def test_smol_compositions_are_removed_after_they_were_measured(made) -> None:
    family, _ = made
    folder = family.folder / "composition" / "recipes"
    assert sorted(path.name for path in folder.iterdir()) == ["base.yaml", "damc.yaml", "naivemc.yaml"]
    assert all((family.folder / "decoupled" / name / "model.safetensors").is_file() for name in MODALITIES)


def test_smol_answers_in_mixed_precision_are_those_of_an_evaluation(made) -> None:
    family, _ = made
    tasks = [family.tasks[name] for name in ("image-fact", "joint-which", "text-name")]
    plain = evaluate(family.donors["image"], tasks, options=EvaluateOptions(leave_out=True), quiet=True).results
    mixed = mixed_results(family.donors["image"], tasks, batch=8, leave_out=True)
    assert [(row.task, row.metric, row.n) for row in mixed] == [(row.task, row.metric, row.n) for row in plain]


def test_smol_answers_are_kept_apart_by_precision(made) -> None:
    family, _ = made
    tasks = [family.tasks["text-name"]]
    keys = {
        laboratory_composition._fingerprint(family.base, tasks, leave_out=False, mixed=mixed) for mixed in (True, False)
    }
    assert len(keys) == 2


def test_smol_mixed_precision_reaches_the_products_and_leaves_the_rest(made) -> None:
    from mcompose.pipeline.lab.composition.answers import _Mixed

    class Probe:
        device = "here"

        def generate(self, **inputs):
            return inputs["x"] @ inputs["x"]

    wrapped = _Mixed(Probe())
    assert wrapped.generate(x=torch.ones(2, 2)).dtype == torch.bfloat16
    assert wrapped.device == "here"
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_smol_report_names_families_and_refuses_others(tmp_path) -> None:
    with pytest.raises(RequestError, match="'smoll' is not a lab family") as told:
        laboratory.report("composition", tmp_path, seeds=1, family="smoll")
    assert "smol" in told.value.hint
    with pytest.raises(RequestError, match="report numbers is not measured on smol"):
        laboratory.report("numbers", tmp_path, seeds=1, family="smol")
    assert list(tmp_path.iterdir()) == []


def test_smol_report_brings_seeds_together_and_prints_what_there_is(made, tmp_path, monkeypatch) -> None:
    _, found = made
    asked = []

    def make(name, folder, *, seed):
        asked.append((name, folder.name))
        return laboratory.MadeFamily(seed)

    plans = []
    monkeypatch.setattr(laboratory, "make", make)
    monkeypatch.setattr(laboratory_composition, "composition_run", lambda family, plan: plans.append(plan) or found)
    report = laboratory.report("composition", tmp_path, seeds=2, family="smol")
    assert asked == [("smol", "smol-0"), ("smol", "smol-1")]
    assert all(plan.mixed and not plan.trials and plan.settings == laboratory.SMOL for plan in plans)
    header, lines = report.table()
    assert "joint-3" in header
    assert "joint-4" not in header
    assert "damc" in [line[0] for line in lines]
    assert report.plot.is_file()
    assert set(json.loads(json.dumps(report.to_dict()))) == {"name", "rows"}
