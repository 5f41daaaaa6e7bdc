"""LoRA by PEFT, the results of stages one on another, and the full checkpoint that they come to."""

import json

import numpy as np
import pytest
import torch
from align_folders import STAGE, build
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from mcompose.align.results.export import ExportRequest, export
from mcompose.align.results.lineage import open_lineage
from mcompose.align.run import StageRequest, run_stage
from mcompose.errors import CheckpointError
from mcompose.ledger import Ledger
from mcompose.merge.verify import verify
from mcompose.modeling import register
from mcompose.recipe import Stage

LORA = {"train": ["projectors"], "lora": {"language": {"rank": 2, "targets": ["q_proj", "down_proj"]}}, "steps": 3}
LORA["lora"]["encoder:sees"] = {"rank": 4, "alpha": 4, "targets": ["v_proj"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``out``, and two stages on it: LoRA with projectors, then the head."""
    home = build(tmp_path_factory.mktemp("lora")).parent
    run_stage(StageRequest(Stage(**{**STAGE, **LORA}), 1, home / "out", home / "1", home, "tiny", quiet=True))
    second = Stage(**{**STAGE, "train": ["head"], "steps": 2})
    run_stage(StageRequest(second, 2, home / "1", home / "2", home, "tiny", quiet=True))
    return home


def write(folder, target, **changes):
    given = {"recipe": b"schema: 1\n", "recipe_file": "recipe.yaml", "name": "tiny", "max_shard_size": 10**9}
    return export(open_lineage(folder), ExportRequest(target, **{**given, **changes}))


def test_the_adapter_is_one_that_peft_reads_and_folds_to_the_same(home, tmp_path):
    register()
    model = AutoModelForMultimodalLM.from_pretrained(home / "out", dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, home / "1").merge_and_unload().state_dict()
    ours = load_file(write(home / "1", tmp_path / "full") / "model.safetensors")
    adapted = [k for k in ours if k.endswith(("q_proj.weight", "down_proj.weight")) and ".language_model." in k]
    adapted += [k for k in ours if k.endswith("v_proj.weight") and ".towers." in k]
    parent = load_file(home / "out" / "model.safetensors")
    assert len(adapted) == 6
    assert not any(torch.equal(ours[key], parent[key]) for key in adapted)
    for key in adapted:
        torch.testing.assert_close(ours[key], merged[key], rtol=0, atol=1e-6)


def test_the_checkpoint_is_parent_plus_deltas_byte_for_byte(home, tmp_path):
    folder = write(home / "2", tmp_path / "full")
    wanted = load_file(home / "out" / "model.safetensors")
    factors = load_file(home / "1" / "adapter_model.safetensors")
    config = json.loads((home / "1" / "adapter_config.json").read_text())
    for name, a in factors.items():
        if not name.endswith("lora_A.weight"):
            continue
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = factors[name.replace("lora_A", "lora_B")]
        scale = 1.0 if ".towers." in layer else 2.0
        key = f"{layer}.weight"
        wanted[key] = torch.from_numpy(wanted[key].numpy() + np.float32(scale) * (b.numpy() @ a.numpy()))
    assert config["r"] == 2
    wanted |= load_file(home / "1" / "delta.safetensors") | load_file(home / "2" / "delta.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys()
    exact = 0
    for key, tensor in found.items():
        if f"base_model.model.{key.removesuffix('.weight')}.lora_A.weight" in factors:
            torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=1e-7)
        else:
            assert torch.equal(tensor, wanted[key]), key
            exact += 1
    assert exact == len(found) - 6


def test_an_export_is_an_output_like_any_other(home, tmp_path):
    folder = write(home / "2", tmp_path / "full")
    assert verify(folder).ok
    ledger = Ledger.read(folder)
    assert [step.step for step in ledger.steps] == ["merge", "align", "align"]
    assert [step.details["stage"] for step in ledger.steps[1:]] == [1, 2]
    rows = {row.name: row for row in ledger.tensors}
    assert (rows["lm_head.weight"].action, rows["lm_head.weight"].note) == (
        "trained",
        "merged, then trained in stage 2",
    )
    assert rows["model.language_model.norm.weight"].action == "merged"
    again = write(home / "2", tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path.name


def test_shards_are_cut_as_asked(home, tmp_path):
    folder = write(home / "2", tmp_path / "full", max_shard_size=100_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole = load_file(write(home / "2", tmp_path / "whole") / "model.safetensors")
    parts = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    assert all(torch.equal(parts[key], tensor) for key, tensor in whole.items())


def test_the_next_stage_starts_from_what_the_one_before_left(home, tmp_path):
    """The first loss of a stage on a delta is the loss of the exported checkpoint on the same batch."""
    folder = write(home / "1", tmp_path / "full")
    stage = Stage(**{**STAGE, "steps": 1})
    for name, parent in (("a", home / "1"), ("b", folder)):
        run_stage(StageRequest(stage, 2, parent, tmp_path / name, home, "tiny", quiet=True))
    first, second = (json.loads((tmp_path / n / "stage.json").read_text())["losses"]["first"] for n in "ab")
    assert first == second


def test_a_stage_on_another_checkpoint_than_the_one_that_is_there_is_refused(home, tmp_path):
    run_stage(StageRequest(Stage(**{**STAGE, "steps": 1}), 1, home / "1", tmp_path / "s", home, "tiny", quiet=True))
    record = home / "1" / "stage.json"
    before = record.read_bytes()
    try:
        record.write_bytes(before.replace(b'"recipe": "tiny"', b'"recipe": "else"'))
        with pytest.raises(CheckpointError, match="'1' has changed since stage"):
            open_lineage(tmp_path / "s")
    finally:
        record.write_bytes(before)


def test_a_damaged_delta_is_refused(home, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("stage.json", "run.json"):
        (folder / name).write_bytes((home / "2" / name).read_bytes())
    tensors = load_file(home / "2" / "delta.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / "delta.safetensors")
    with pytest.raises(CheckpointError, match=r"does not match its record at 'lm_head.weight'"):
        open_lineage(folder)
