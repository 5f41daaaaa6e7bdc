"""DAMC recipes that cannot be followed, or not as they are meant, and what a plan says of groups."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damc_sources import LINEARS, composed, logits, write_donor
from safetensors.torch import load_file, save_file
from tiny_sources import write_recipe

from mcompose.compose import make_blueprint
from mcompose.compose.decoupled import Decoupling
from mcompose.errors import CompositionError, RecipeError
from mcompose.recipe import load_recipe

DONOR, CONVERT = {"decouple": "donor"}, {"decouple": "convert"}
DAMC = {"method": "damc"}


@pytest.fixture(scope="module")
def donors(natives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("donors")
    wanted = (("sees", "low-rank"), ("sees", "dense"), ("hears", "low-rank"))
    return {f"{name}-{kind}": write_donor(folder, natives, name, kind=kind, prefixes=True) for name, kind in wanted}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def groups_of(blueprint) -> dict:
    return next(dict(each.groups) for each in blueprint.additions if isinstance(each, Decoupling))


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_factors_over_different_tensors_are_refused_and_dense_groups_are_the_way_out(natives, donors, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(donors["hears-low-rank"], moved)
    tensors = weights(moved)
    tensors[f"{LINEARS[4]}.weight"] += 1e-3
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    sources = {"sees": donors["sees-low-rank"], "hears": moved}
    with pytest.raises(
        CompositionError, match="low-rank groups of 'sees' and 'hears' are added to different tensors"
    ) as told:
        composed(tmp_path, natives, sources, DAMC, compose=DONOR)
    assert "groups: dense" in told.value.hint
    ours = composed(tmp_path, natives, sources, DAMC, compose={**DONOR, "groups": "dense"}, output="dense")
    assert np.isfinite(logits(ours, "image", "audio").numpy()).all()


def planned(folder: Path, natives: Path, sources: dict[str, Path], **changes):
    entries = [{"name": name, "model": f"local:{path}"} for name, path in sources.items()]
    whole = {"merge": DAMC, "base": f"local:{natives / 'base'}", "sources": entries, **changes}
    return make_blueprint(load_recipe(write_recipe(folder / "plan.yaml", **whole)), weights=False)


def test_a_source_without_a_group_is_told_how_to_get_one(natives, donors, tmp_path):
    sources = {"sees": donors["sees-dense"], "hears": natives / "hears"}
    with pytest.raises(CompositionError, match="'hears' brings 'audio' and carries no group for it") as told:
        planned(tmp_path, natives, sources, compose=DONOR)
    assert "convert" in told.value.hint
    plan = planned(tmp_path, natives, sources, compose=CONVERT)
    assert groups_of(plan) == {"image": {"kind": "dense"}, "audio": {"kind": "dense"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge": {**DAMC, "weights": {"sees": 1.0}}}, "leaves out the source 'hears'"),
        ({"merge": {**DAMC, "parameters": {"modality_weights": {"sees": 1.0}}}}, "leaves out the source 'hears'"),
        ({"base": None}, "'damc' needs a base"),
        ({"output": {"dir": "x", "format": "native"}}, "cannot hold decoupled groups"),
    ],
)
def test_recipes_that_cannot_be_meant(natives, donors, tmp_path, changes, words):
    sources = {"sees": donors["sees-dense"], "hears": donors["hears-low-rank"]}
    if "base" in changes:
        recipe = write_recipe(
            tmp_path / "r.yaml", sources=[{"name": n, "model": f"local:{p}"} for n, p in sources.items()], merge=DAMC,
            compose=DONOR,
        )  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            make_blueprint(load_recipe(recipe), weights=False)
        return
    with pytest.raises(RecipeError, match=words):
        planned(tmp_path, natives, sources, compose=DONOR, **changes)


def test_groups_that_a_recipe_leaves_out_are_said(natives, donors, tmp_path):
    sources = {"sees": donors["sees-low-rank"], "hears": natives / "hears"}
    plan = planned(tmp_path, natives, sources)
    assert groups_of(plan) == {}
    assert any("groups of 'sees' are left out" in text for text in plan.warnings)
    ours = composed(tmp_path, natives, sources, {"method": "naivemc"})
    assert "routed_groups" not in config(ours)
    assert not any(".groups." in key for key in weights(ours))
    # One composed source keeps its class, and loses its groups.
    alone = composed(
        tmp_path, natives, {"sees": donors["sees-low-rank"]}, {"method": "naivemc"}, output="alone", format="native"
    )
    assert "routed_groups" not in config(alone)
    assert torch.isfinite(logits(alone, "image")).all()


def test_a_plan_needs_no_torch(natives, donors, tmp_path):
    sources = {"sees": donors["sees-low-rank"], "hears": natives / "hears"}
    planned(tmp_path, natives, sources, compose=CONVERT)
    code = (
        "import sys; from pathlib import Path; from mcompose.pipeline.headers import plan\n"
        f"report = plan(Path({str(tmp_path / 'plan.yaml')!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "import json; print(json.dumps(report.to_dict()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert '"part": "group:image"' in done.stdout


def test_a_plan_counts_the_bytes_of_groups_and_origins(natives, donors, tmp_path):
    sources = {"sees": donors["sees-low-rank"], "hears": donors["hears-low-rank"]}
    plan = planned(tmp_path, natives, sources, compose=DONOR).plan
    sizes: dict[str, int] = {}
    for job in plan.jobs:
        sizes[job.part] = sizes.get(job.part, 0) + job.nbytes
    matrices = 2 * 4 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64)
    assert sizes["origin"] == matrices + 2 * 4 * (32 + 16 + 16)
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    ranks = {"image": 2 + 4 % 3, "audio": 2 + 5 % 3}
    for modality, rank in ranks.items():
        assert sizes[f"group:{modality}"] == 2 * 4 * rank * sum(a + b for a, b in widths)
    assert plan.bytes_to_write == sum(sizes.values())
    assert sizes["group:text"] == sizes["group:image"] + sizes["group:audio"]
    actions = {job.name: job.action for job in plan.jobs if job.part.startswith(("group", "origin"))}
    scaled = {name for name, action in actions.items() if action != "copied"}
    assert scaled == {name for name in actions if name.endswith("groups.text.lora_B.weight")}
