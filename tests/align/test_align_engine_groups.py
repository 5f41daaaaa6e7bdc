"""The strategies by which donors of DAMC are trained: groups are added, trained, written and loaded again."""

import json

import pytest
import torch
from align_folders import STAGE, build
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

from mcompose.align.results.export import ExportRequest, export
from mcompose.align.results.lineage import open_lineage
from mcompose.align.run import StageRequest, run_stage
from mcompose.align.strategy import apply_strategy
from mcompose.errors import RequestError
from mcompose.modeling import register
from mcompose.recipe import Stage

PROJECTIONS = "key:model.language_model.layers.*_proj.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return build(tmp_path_factory.mktemp("groups")).parent


def request(home, folder, **changes):
    plain = {key: value for key, value in STAGE.items() if key != "train"}
    stage = Stage(**{**plain, "steps": 3, "lr": 1e-2, **changes})
    return StageRequest(stage, 1, home / "out", folder, home, "tiny", quiet=True)


def delta_of(folder):
    return load_file(folder / "delta.safetensors")


def test_shared_and_projector_are_parts(home):
    lineage = open_lineage(home / "out")
    train = {}
    for name in ("projector", "shared"):
        stage, groups = apply_strategy(Stage(strategy=name), lineage.config, lineage.anatomy)
        assert groups is None
        train[name] = stage.train
    assert train == {"projector": ("projectors",), "shared": ("projectors", "language")}
    lora, _ = apply_strategy(Stage(strategy="shared", lora={"language": {}}), lineage.config, lineage.anatomy)
    assert lora.train == ("projectors",)


@pytest.mark.parametrize(
    ("strategy", "spec", "parts"),
    [
        ("modality", {"kind": "low-rank", "rank": 2}, {"projectors", "group:image"}),
        ("modality+text", {"kind": "low-rank", "rank": 2}, {"projectors", "group:image", "group:text"}),
        ("modality", {"kind": "dense"}, {"projectors", "group:image"}),
        (
            "modality+text",
            {"kind": "dense"},
            {"projectors", "group:image", "key:model.language_model.layers.*_proj.weight"},
        ),
    ],
)
def test_groups_are_trained_and_exported(home, tmp_path, strategy, spec, parts):
    record = run_stage(request(home, tmp_path / "1", strategy=strategy, groups=spec)).result.record
    assert set(record["trained"]) == parts
    assert set(record["config"]["routed_groups"]) == {p.partition(":")[2] for p in parts if p.startswith("group:")}
    delta = delta_of(tmp_path / "1")
    ending = ".groups.image.weight" if spec["kind"] == "dense" else ".groups.image.lora_B.weight"
    trained = [key for key in delta if key.endswith(ending)]
    assert len(trained) == 14  # seven projections of two layers
    assert any(delta[key].abs().max() > 0 for key in trained)
    folder = export(
        open_lineage(tmp_path / "1"),
        ExportRequest(tmp_path / "full", b"schema: 1\n", "recipe.yaml", "tiny", 10**9),
    )
    register()
    model, info = AutoModelForMultimodalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    held = dict(model.named_parameters())
    assert all(torch.equal(held[key], tensor) for key, tensor in delta.items())


def test_the_next_stage_trains_groups_that_are_there(home, tmp_path):
    run_stage(request(home, tmp_path / "1", strategy="modality", groups={"rank": 2}))
    first = StageRequest(
        Stage(**{**STAGE, "train": ["groups:image"], "steps": 1}), 2, tmp_path / "1", tmp_path / "2", home, quiet=True
    )
    record = run_stage(first).result.record
    assert set(record["trained"]) == {"groups:image"}
    before, after = delta_of(tmp_path / "1"), delta_of(tmp_path / "2")
    assert set(after) == {key for key in before if ".groups.image." in key}
    assert any(not torch.equal(after[key], before[key]) for key in after)
    # The loss begins where the first stage's weights are, not where fresh groups would be.
    plain = StageRequest(
        Stage(**{**STAGE, "train": ["head"], "steps": 1}), 2, tmp_path / "1", tmp_path / "3", home, quiet=True
    )
    losses = [json.loads((tmp_path / "2" / "stage.json").read_text())["losses"]["first"]]
    losses.append(run_stage(plain).result.record["losses"]["first"])
    assert losses[0] == losses[1]


def test_a_native_checkpoint_has_no_groups(home):
    lineage = open_lineage(home / "sees")
    with pytest.raises(RequestError, match="needs a composed checkpoint, but this is a 'llava'"):
        apply_strategy(Stage(strategy="modality"), lineage.config, lineage.anatomy)


def test_a_native_checkpoint_is_trained_under_its_own_keys(home, tmp_path):
    stage = Stage(**{**STAGE, "train": ["projectors", "language"], "lr": 1e-3, "steps": 2})
    run_stage(StageRequest(stage, 1, home / "sees", tmp_path / "1", home, "tiny", quiet=True))
    parent, delta = load_file(home / "sees" / "model.safetensors"), delta_of(tmp_path / "1")
    assert set(delta) < set(parent)
    assert any("q_proj" in key for key in delta)
    assert any("multi_modal_projector" in key for key in delta)
