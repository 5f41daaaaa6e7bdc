"""What a stage trains, told from names: roles, qualifiers, rates, LoRA, and the nearest name for a misspelt one."""

import pytest

from mcompose.align.parts import plan_training, read_parts, select
from mcompose.align.stage import fingerprint, plan_steps
from mcompose.anatomy import Anatomy, Slot
from mcompose.errors import RecipeError, RequestError, UnknownNameError
from mcompose.recipe import Stage, parse_recipe

KEYS = {
    "model.language_model.embed_tokens.weight": ("embedding", (10, 4)),
    "model.language_model.layers.0.self_attn.q_proj.weight": ("language", (4, 4)),
    "model.language_model.layers.0.self_attn.q_proj.groups.audio.weight": ("group:audio", (4, 4)),
    "model.language_model.layers.0.self_attn.q_proj.base.weight": ("origin", (4, 4)),
    "model.language_model.layers.0.mlp.up_proj.weight": ("language", (8, 4)),
    "model.language_model.norm.weight": ("language", (4,)),
    "model.towers.sees.vision_tower.embeddings.position_embedding.weight": ("encoder", (5, 3)),
    "model.towers.sees.vision_tower.q_proj.weight": ("encoder", (3, 3)),
    "model.towers.sees.multi_modal_projector.weight": ("projector", (4, 3)),
    "model.towers.hears.multi_modal_projector.weight": ("projector", (4, 3)),
    "model.language_model.layers.0.mlp.router.weight": ("language", (2, 4)),
    "lm_head.weight": ("head", (10, 4)),
}
Q, UP, ROUTER = [
    f"model.language_model.layers.0.{name}.weight" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.router")
]


@pytest.fixture
def parts():
    slots = {key: Slot(key, key.removeprefix("model."), part) for key, (part, _) in KEYS.items()}
    return read_parts(Anatomy("mcompose", "", True, slots, {}, 1))


def plan(parts, **stage):
    return plan_training(Stage(**stage), parts, matrices=[k for k, (_, shape) in KEYS.items() if len(shape) == 2])


def test_parts_are_told_by_role_source_and_name(parts):
    assert list(parts) == [
        "embedding", "language", "group:audio", "origin", "encoder:sees", "projector:sees", "projector:hears",
        "head",
    ]  # fmt: skip
    # The router of a mixture of experts is a matrix of its language model like any other.
    assert parts["language"].keys == (Q, UP, "model.language_model.norm.weight", ROUTER)


@pytest.mark.parametrize(
    ("name", "count"),
    [("projectors", 2), ("projector:hears", 1), ("encoder", 2), ("groups", 1), ("group", 1), ("groups:audio", 1),
     ("group:audio", 1), ("language", 4),
     ("all", 11), ("key:*.q_proj.weight", 2), ("heads", 1)],
)  # fmt: skip
def test_names_stand_for_tensors(parts, name, count):
    assert len(select(name, parts)) == count


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("projector:see", "Did you mean 'projector:sees'?"),
        ("encoder:hears", "encoder:sees"),
        ("expert", "This checkpoint has no part 'expert'"),
        ("router", "This checkpoint has no part 'router'"),
        ("key:nothing*", "Tensors are named like"),
    ],
)
def test_a_part_that_is_not_there_is_told(parts, name, words):
    with pytest.raises(UnknownNameError) as failure:
        select(name, parts)
    assert words in str(failure.value)


def test_the_base_of_decoupled_groups_is_never_trained(parts):
    assert not any(".base." in key for key in select("all", parts))


def test_a_tied_head_points_to_the_embedding(parts):
    del parts["head"]
    with pytest.raises(UnknownNameError, match=r"shares the embedding's tensor. Train 'embedding'"):
        select("head", parts, tied=True)


def test_rates_by_part_the_more_special_one_wins(parts):
    plan_ = plan(parts, train=["projectors", "language"], lr={"projector": 1e-3, "language": 2e-5})
    assert plan_.rates == {"projectors": 1e-3, "language": 2e-5}
    plan_ = plan(parts, train=["projector:sees", "projector:hears"], lr={"projectors": 1e-3, "projector:hears": 1e-4})
    assert plan_.rates == {"projector:sees": 1e-3, "projector:hears": 1e-4}
    with pytest.raises(UnknownNameError, match="'lr' does not name 'language'"):
        plan(parts, train=["projectors", "language"], lr={"projectors": 1e-3})
    with pytest.raises(UnknownNameError, match="'head', which is not trained"):
        plan(parts, train=["projectors"], lr={"projectors": 1e-3, "head": 1e-3})


def test_lora_takes_linear_layers_by_their_names(parts):
    lora = plan(parts, lora={"language": {"rank": 2}, "encoder": {}}).lora
    assert [part.keys for part in lora] == [(Q, UP, ROUTER), ("model.towers.sees.vision_tower.q_proj.weight",)]
    assert plan(parts, lora={"language": {"targets": ["up_proj"]}}).lora[0].keys == (UP,)
    with pytest.raises(UnknownNameError, match="Did you mean 'q_proj'"):
        plan(parts, lora={"language": {"targets": ["q_prj"]}})
    with pytest.raises(UnknownNameError, match="Remove one of them"):
        plan(parts, train=["language"], lora={"language": {}})


def recipe(stage):
    head = "schema: 1\nname: x\nsources: [{name: a, model: 'local:a'}]\nmerge: {method: linear}\n"
    text = f"{head}align:\n  stages:\n    1: {stage}\n"
    return parse_recipe(text, path="r.yaml").recipe.align.stages[1]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("{train: [projectrs]}", "r.yaml:7: 'align.stages[1].train[0]' is not a known part: 'projectrs'. Did you mean"),
        ("{data: [a.jsonl]}", "trains nothing"),
        ("{train: [head], steps: 3, epochs: 1}", "cannot both be set"),
        ("{train: [head], batch_size: 6, accumulation: 4}", "cannot cut 6 samples into 4"),
        ("{train: [head], lr: {haed: 1}}", "Did you mean 'head'?"),
        ("{train: [head], lr: fast}", "must be a number"),
        ("{train: [head], strategy: modal}", "Did you mean 'modality'?"),
        ("{train: [head], groups: {rank: 4}}", "needs a strategy that adds groups"),
        ("{train: [head], schedule: cos}", "'align.stages[1].schedule' is not a known schedule"),
        ("{train: [head], lora: {langage: {}}}", "Did you mean 'language'?"),
        ("{train: [head], data: [{path: a.jsonl, split: test}]}", "data[0].split' is only for data sets on the Hub"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_by_line(stage, words):
    with pytest.raises(RecipeError) as failure:
        recipe(stage)
    assert words in str(failure.value)
    assert str(failure.value).startswith("r.yaml:7: ")


def test_steps_are_the_same_for_any_number_of_processes():
    stage = Stage(train=["head"], batch_size=8, accumulation=2, epochs=2, warmup=0.25)
    one, two, four = (plan_steps(stage, samples=30, processes=n) for n in (1, 2, 4))
    assert (one.steps, one.micro, one.pieces, one.warmup) == (8, 4, 2, 2)
    assert (two.steps, two.micro, two.pieces) == (8, 4, 1)
    assert (four.steps, four.micro, four.pieces) == (8, 2, 1)
    with pytest.raises(RequestError, match="cannot be split among 3"):
        plan_steps(stage, samples=30, processes=3)
    with pytest.raises(RequestError, match="no sample"):
        plan_steps(stage, samples=0)


def test_a_fingerprint_is_of_what_changes_the_result():
    stage = Stage(train=["head"])
    first = fingerprint(stage, parent="a")
    assert fingerprint(Stage(train=["head"], save_every=5, workers=2), parent="a") == first
    assert fingerprint(Stage(train=["head"], seed=1), parent="a") != first
    assert fingerprint(stage, parent="b") != first
