"""What stages say about experts: masking, router, tiles, presets; mistakes are told with their line."""

import pytest
from recipe_failures import GOOD, failure

from mcompose.recipe import Stage, load_recipe, parse_recipe, recipe_text

STAGES = "align:\n  stages:\n    1:\n      train: [projectors]\n"


def stage_of(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("output:", STAGES + text + "\noutput:"), encoding="utf-8")
    return load_recipe(path).recipe.align.stages[1]


def test_masking_is_the_papers_unless_said_otherwise(tmp_path):
    spec = stage_of(tmp_path, "      gscm: {}").gscm
    assert (spec.ratio, spec.unit, spec.count, spec.mechanism) == (0.3, "token", "exact", "mask")
    assert (spec.domains, spec.schedule, spec.whole_share, spec.include_thumbnail) == (None, "constant", 0.8, True)
    assert stage_of(tmp_path, "      gscm: 0.5").gscm.ratio == 0.5
    assert stage_of(tmp_path, "      lr: 1.0e-3").gscm is None


MISTAKES = {
    "gscm: {ratio: 1.5}": ("'align.stages[1].gscm.ratio'", ""),
    "gscm: {unit: tiles}": ("'align.stages[1].gscm.unit'", "'tile'"),
    "gscm: {ramp: 0.2}": ("'align.stages[1].gscm.ramp' has no effect with a constant schedule", "schedule: linear"),
    "gscm: {ratio: 0.5, whole: 0.7}": ("'align.stages[1].gscm.whole' is only for ratio 1", ""),
    "gscm: 0.3\n      packing: true": ("'align.stages[1].gscm' cannot be combined with 'packing'", "group_by_length"),
    "router: {fit: seperate}": ("'align.stages[1].router.fit'", "'separate'"),
    "router: {noise: 0.2}": ("'align.stages[1].router.noise' has no effect here", "routing: noise"),
    "router: {class_weights: {none: heavy}}": ("'align.stages[1].router.class_weights.none' must be a number", ""),
    "tiles: 0": ("'align.stages[1].tiles' cannot be 0", ""),
    "preset: chimera-stage3": ("not a known preset: 'chimera-stage3'", "'chimera-stage2'"),
    "router: {fit: separate}\n      lora: {router: {rank: 2}}": ("which 'router.fit: separate' fits", "fit: joint"),
}


@pytest.mark.parametrize("text", MISTAKES, ids=str)
def test_mistakes_are_told_with_their_line(tmp_path, text):
    line, message, hint = failure(tmp_path, GOOD.replace("output:", STAGES + f"      {text}\noutput:"))
    wanted, suggested = MISTAKES[text]
    assert wanted in message
    assert suggested in hint
    first = GOOD[: GOOD.index("output:")].count("\n") + 5
    assert line in (first, first + 1)


def test_a_preset_fills_in_what_is_left_out_and_is_written_out(tmp_path):
    one = Stage(preset="chimera-stage1", batch_size=32)
    assert (one.batch_size, one.lr, one.warmup, one.epochs, one.max_length) == (32, 4e-5, 100, 1.0, 4096)
    assert one.train == ("projectors", "router", "separators")
    assert (one.gscm, one.tiles.limit, one.weight_decay, one.schedule) == (None, 1, 0.01, "cosine")
    two = Stage(preset="chimera-stage2", steps=10)
    assert (two.steps, two.epochs, two.lr, two.batch_size, two.warmup) == (10, None, 2e-5, 128, 0.03)
    assert (two.gscm.ratio, two.tiles.limit, two.max_length) == (0.3, 6, 8192)
    assert two.train == ("projectors", "router", "separators", "llm")
    assert Stage(preset="chimera-stage2", gscm=None).gscm is None
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("output:", "align: {stages: {2: {preset: chimera-stage2, gscm: }}}\noutput:"))
    recipe = load_recipe(path).recipe
    again = parse_recipe(recipe_text(recipe), path=path).recipe
    assert again.align.stages[2] == recipe.align.stages[2]
    assert again.align.stages[2].gscm is None


def test_what_a_stage_says_is_read_again_from_its_own_text(tmp_path):
    text = """
      gscm: {ratio: 1.0, unit: tile, count: bernoulli, mechanism: drop, schedule: cosine, whole: 0.5}
      router: {routing: noise, class_weights: {none: 0.5, charts: 2}, general: [photos]}
      tiles: {limit: 6, inference: 12}"""
    stage = stage_of(tmp_path, text)
    again = parse_recipe(recipe_text(load_recipe(tmp_path / "recipe.yaml").recipe), path=tmp_path / "r.yaml").recipe
    assert again.align.stages[1] == stage
    assert (stage.router.noise_share, stage.router.loss_weight, stage.gscm.rises_over) == (0.1, 1.0, 0.1)


def test_a_stage_may_do_nothing_but_fit_the_router():
    assert Stage(router={"fit": "separate"}).fits_router
    assert not Stage(train=["router"]).fits_router
