"""The Chimera report: recipes of its variants, its arithmetic, and a run on a family of a few steps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from mcompose.errors import RequestError
from mcompose.evaluate.routes import expert_for
from mcompose.lab import FitSettings, LabFamily, Row
from mcompose.pipeline.lab import run as laboratory
from mcompose.pipeline.lab.chimera import run as laboratory_chimera
from mcompose.pipeline.lab.chimera.recipes import (
    CONCAT,
    MASKED,
    NAIVE,
    SINGLE,
    Stage,
    Training,
    variants_for,
    write_recipe,
)
from mcompose.pipeline.lab.chimera.report import PAPER, chimera_report, markdown, plot_chimera, with_paper
from mcompose.pipeline.lab.chimera.run import COMPARED, MEANS, Plan, chimera_run, domain_means, gaps
from mcompose.recipe import load_recipe

EXPERTS = ("chart", "table", "document")
TRAINING = Training(Stage(1e-3, 1, 4), Stage(1e-3, 2, 4))


@pytest.fixture
def family(tmp_path):
    """The paths of a family, without weights: recipes are only read."""
    lines = ["compose: {experts: {chart: {encoder: local:chart, domain: chart, padding: drop},"]
    lines += ["  table: {encoder: local:table}, document: {encoder: local:document}}}"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines), encoding="utf-8")
    return LabFamily(
        "pictures", tmp_path, tmp_path / "base", {name: tmp_path / name for name in EXPERTS}, {},
        tmp_path / "recipe.yaml", {"seed": 3, "domains": ["none", *EXPERTS]},
    )  # fmt: skip


@pytest.fixture
def recipes(family):
    return {
        one.name: load_recipe(
            write_recipe(family, one, family.folder / "chimera" / f"{one.slug}.yaml", training=TRAINING)
        ).recipe
        for one in variants_for(EXPERTS)
    }


def test_every_variant_but_the_naive_finetune_has_experts_and_its_own_ratio(recipes) -> None:
    masking = {name: recipe.align.stages[2].gscm for name, recipe in recipes.items()}
    ratios = {name: gscm and gscm.ratio for name, gscm in masking.items()}
    assert ratios == {NAIVE: None, CONCAT: 0.0, MASKED: 0.3, "gscm 0.5": 0.5, "gscm 1.0": 1.0, SINGLE: 0.3}
    assert masking["gscm 1.0"].whole_share == 0.8
    assert {name: tuple(recipe.compose.experts) for name, recipe in recipes.items()} == {
        NAIVE: (), CONCAT: EXPERTS, MASKED: EXPERTS, "gscm 0.5": EXPERTS, "gscm 1.0": EXPERTS, SINGLE: ("chart",),
    }  # fmt: skip
    assert recipes[MASKED].compose.experts["chart"].padding == "drop"
    assert all(recipe.align.stages[1].gscm is None for recipe in recipes.values())


def test_all_variants_see_the_same_data_as_often_and_train_the_same_general_parts(recipes) -> None:
    def told(recipe, number):
        stage = recipe.align.stages[number]
        kept = {"gscm", "train"}
        return {key: value for key, value in stage.model_dump().items() if key not in kept}

    for number in (1, 2):
        assert len({json.dumps(told(recipe, number), default=str) for recipe in recipes.values()}) == 1
    trained = {name: [recipe.align.stages[number].train for number in (1, 2)] for name, recipe in recipes.items()}
    assert trained.pop(NAIVE) == [("projectors",), ("projectors", "llm")]
    own = ("projectors", "router", "separators")
    assert all(stages == [own, (*own, "llm")] for stages in trained.values())


def test_variants_with_equal_experts_differ_in_stage_two_only(family) -> None:
    groups = {}
    for one in variants_for(EXPERTS):
        path = write_recipe(family, one, family.folder / f"{one.slug}.yaml", training=TRAINING)
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        del raw["name"], raw["align"]["stages"][2]
        groups.setdefault(one.group, []).append(raw)
    assert {name: len(raws) for name, raws in groups.items()} == {"plain": 1, "-".join(EXPERTS): 4, "chart": 1}
    assert all(raw == raws[0] for raws in groups.values() for raw in raws)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("told", {"chart": "chart", "table": "table", "document": "document", "none": "none"}),
        ("wrong", {"chart": "table", "table": "document", "document": "chart", "none": "chart"}),
        ("none", dict.fromkeys(("chart", "table", "document", "none"), "none")),
    ],
)
def test_pictures_are_forced_to_the_right_the_wrong_or_no_expert(route, expected) -> None:
    assert {domain: expert_for(domain, EXPERTS, route=route) for domain in expected} == expected


def test_means_are_over_domains_and_not_over_tasks() -> None:
    scores = {"chart-value": 0.2, "chart-table": 0.4, "table-cell": 0.9, "general-kind": 0.1}
    found = domain_means(scores)
    assert list(found) == ["all", "special", "chart", "table", "general", *scores]
    assert found["chart"] == pytest.approx(0.3)
    assert found["special"] == pytest.approx((0.3 + 0.9) / 2)
    assert found["all"] == pytest.approx((0.3 + 0.9 + 0.1) / 3)


def test_gaps_are_of_one_seed_and_of_what_both_have() -> None:
    found = {MASKED: {"all": 0.7, "chart": 0.5, "chart-value": 1.0}, CONCAT: {"all": 0.4, "table": 0.1}}
    assert gaps(found) == {f"{MASKED} - {CONCAT}": {"all": pytest.approx(0.3)}}


def test_the_papers_figures_stand_beside_ours() -> None:
    rows = with_paper([Row(CONCAT, "all", 0.5, 0.1, 3), Row(CONCAT, "chart", 0.4, 0.1, 3), Row("x", "all", 0.1, 0, 3)])
    assert [(row.variant, row.metric, row.mean, row.n) for row in rows] == [
        (CONCAT, "all", 0.5, 3), (CONCAT, "chart", 0.4, 3), (CONCAT, "paper", 0.594, 1), ("x", "all", 0.1, 3),
    ]  # fmt: skip
    assert list(PAPER.values()) == [0.570, 0.585, 0.594, 0.613, 0.604, 0.562, 0.594]
    told = markdown([*rows, Row("a - b", "all", 0.012, 0.02, 3)], ("all", "paper")).splitlines()
    assert told == [
        "| variant | all | paper |",
        "| --- | --- | --- |",
        f"| {CONCAT} | 50.0 ± 10.0 | 59.4 |",
        "| x | 10.0 ± 0.0 |  |",
        "| a - b | +1.2 ± 2.0 |  |",
    ]


def test_the_report_is_measured_on_pictures_alone(tmp_path) -> None:
    with pytest.raises(RequestError, match="chimera is not measured on numbers"):
        laboratory.report("chimera", tmp_path, seeds=1, family="numbers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from mcompose.lab.pictures.make import make_pictures
    from mcompose.lab.pictures.settings import PicturesData, PicturesSettings

    few = FitSettings(2, 1e-3, 4)
    settings = PicturesSettings(
        width=32, layers=2, pool=8, checked=8, experts=dict.fromkeys(EXPERTS, few), general=few, base=few, probe=few,
        probed=8, data=PicturesData(test=4, questions=3, train=6),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("chimera") / "pictures-0"
    return make_pictures(folder, seed=0, settings=settings, workers=0)


PLAN = Plan(TRAINING, (CONCAT, MASKED), batch=12, probed=2)


class Spy:
    """What was aligned afresh, and what was asked of which expert."""

    def __init__(self, monkeypatch) -> None:
        from mcompose.modeling.experts.expert import Expert
        from mcompose.pipeline.lab.chimera import measures as measures

        self.stages, self.asked, self.ran = [], [], Counter()
        align, answered, forward = laboratory_chimera.align, measures.answered, Expert.forward

        def spied(recipe, *, stage, options):
            report = align(recipe, stage=stage, options=options)
            self.stages += [] if report.again else [(stage, report.folder.name)]
            return report

        def asked(checkpoint, tasks, *, route="auto", batch, limit=None):
            before = Counter(self.ran)
            found = answered(checkpoint, tasks, route=route, batch=batch, limit=limit)
            self.asked.append((checkpoint.name, route, dict(self.ran - before)))
            return found

        def counted(expert, inputs):
            self.ran[expert.name] += 1
            return forward(expert, inputs)

        monkeypatch.setattr(laboratory_chimera, "align", spied)
        monkeypatch.setattr(measures, "answered", asked)
        monkeypatch.setattr(Expert, "forward", counted)


@pytest.fixture(scope="module")
def charts(made):
    return replace(made, tasks={name: path for name, path in made.tasks.items() if name.startswith("chart-")})


@pytest.fixture(scope="module")
def ran(charts):
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(patch)
        return chimera_run(charts, PLAN, say=lambda _: None), spy


@pytest.mark.timeout(900)
def test_variants_with_equal_experts_share_stage_one(ran, made) -> None:
    assert [stage for stage, _ in ran[1].stages] == [1, 2, 2]
    folders = [made.folder / "chimera" / f"{name}.stage2" for name in ("naive-concat", "gscm-0.3")]
    parents = {json.loads((folder / "stage.json").read_text())["parent"]["identity"] for folder in folders}
    assert len(parents) == 1


@pytest.mark.timeout(900)
def test_forced_routes_run_the_experts_that_they_name(ran) -> None:
    found, spy = ran
    asked = {(name, route): experts for name, route, experts in spy.asked}
    assert asked["gscm-0.3.whole", "wrong"].keys() == {"document"}  # next in the config, which is in alphabetical order
    assert asked["gscm-0.3.whole", "none"] == asked["base", "auto"] == {}
    assert asked["gscm-0.3.whole", "told"].keys() == {"chart"}
    assert {"base", CONCAT, MASKED, f"{MASKED}, wrong", f"{MASKED}, none", f"{MASKED}, told"} <= found.keys()


@pytest.mark.timeout(900)
def test_router_attention_and_cost_are_shares_and_counts(ran) -> None:
    found, _ = ran
    assert set(found[MASKED]) >= {"all", "special", "chart", "chart-value"}
    assert sum(value for name, value in found["router"].items() if name.startswith("chart to")) == pytest.approx(1)
    assert found["cost"]["tokens-table"] == 64 + 2  # a grid of 8 x 8 patches and two separators
    for name in (CONCAT, MASKED):
        expert, general = found[name]["attention-expert"], found[name]["attention-general"]
        assert 0 < expert < 1
        assert 0 < general < 1 - expert
        assert found[name]["attention-share"] == pytest.approx(expert / (expert + general))


@pytest.mark.timeout(900)
def test_masking_changes_what_is_trained(ran, made) -> None:
    from safetensors.numpy import load_file

    files = [made.folder / "chimera" / f"{name}.whole" / "model.safetensors" for name in ("naive-concat", "gscm-0.3")]
    concat, masked = map(load_file, files)
    key = next(key for key in concat if key.endswith("layers.0.self_attn.q_proj.weight") and "language" in key)
    assert (concat[key] != masked[key]).any()


@pytest.mark.timeout(900)
def test_a_second_run_repeats_nothing(ran, charts, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    assert chimera_run(charts, PLAN, say=lambda _: None) == ran[0]
    assert (spy.stages, spy.asked, spy.ran) == ([], [], Counter())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_report_of_two_seeds(made, tmp_path) -> None:
    result = chimera_report([made, made], tmp_path, plan=replace(PLAN, names=()))
    known = {(row.variant, row.metric): row for row in result.rows}
    assert all((name, "all") in known for name in PAPER)
    assert all((f"{one} - {other}", "all") in known for one, other in COMPARED)
    assert {row.n for row in result.rows if row.metric in MEANS} == {2}
    assert result.plot.stat().st_size > 20_000
    header, lines = result.table()
    assert header == ("variant", *MEANS, "attention-share", "paper", "n")
    assert {line[0] for line in lines} >= set(PAPER)


def test_the_picture_is_drawn_without_what_was_not_measured(tmp_path) -> None:
    plot_chimera([Row(MASKED, "all", 0.5, 0.1, 2)], tmp_path / "some.png", title="a few")
    assert (tmp_path / "some.png").stat().st_size > 5_000
