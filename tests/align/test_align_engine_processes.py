"""Several processes make the steps of one: DDP over gloo, equal losses to one process with accumulation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from align_folders import STAGE, build, write_recipe
from safetensors.torch import load_file

from mcompose.align import processes
from mcompose.align.stage import plan_steps
from mcompose.align.trainer import training_arguments
from mcompose.errors import RequestError
from mcompose.recipe import Stage

SETTINGS = {**STAGE, "train": ["projectors", "head"], "lr": 1e-3, "steps": 4, "accumulation": 2, "save_every": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = build(tmp_path_factory.mktemp("processes")).parent
    write_recipe(home, {1: SETTINGS})
    return home


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(home, *arguments, count, recipe="recipe.yaml"):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), "-m", "mcompose", "align", str(home / recipe), "--stage", "1",
        *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)


def losses_of(folder: Path):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_make_the_losses_of_one_with_accumulation(home, tmp_path):
    from mcompose.pipeline.align import AlignOptions, align

    align(home / "recipe.yaml", stage=1, options=AlignOptions(output=tmp_path / "one", quiet=True))
    result = torchrun(home, "-o", str(tmp_path / "two"), "--json", count=2)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)  # one process speaks
    torch.testing.assert_close(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-5, atol=0)
    one, two = (load_file(tmp_path / name / "delta.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    records = [json.loads((tmp_path / name / "stage.json").read_text()) for name in ("one", "two")]
    assert records[0]["frozen"] == records[1]["frozen"] == report["frozen"]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]


PAIRS = [
    {"prompt": "<image> what is this ?", "chosen": "a b", "rejected": "c d e f", "image": f"{number}.png"}
    for number in range(3, 11)
]


def test_two_processes_learn_from_pairs_as_one_does(home, tmp_path):
    from mcompose.pipeline.align import AlignOptions, align

    (home / "data" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    stage = {**SETTINGS, "data": ["data/pairs.jsonl"], "dpo": {"beta": 0.5}, "save_every": 4}
    recipe = write_recipe(home, {1: stage}).rename(home / "pairs.yaml")
    write_recipe(home, {1: SETTINGS})
    align(recipe, stage=1, options=AlignOptions(output=tmp_path / "one", quiet=True))
    result = torchrun(home, "-o", str(tmp_path / "two"), "--json", count=2, recipe="pairs.yaml")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for name in ("loss", "margin", "preference_accuracy"):
        one, two = ([row[name] for row in found] for found in rows)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=name)
    assert rows[0][-1]["margin"] > 0.1
    one, two = (load_file(tmp_path / name / "delta.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_sharding_is_refused_where_it_would_not_happen(monkeypatch):
    stage = Stage(train=["head"], sharding="fsdp")
    with pytest.raises(RequestError, match="needs several processes"):
        processes.check_sharding(stage)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="needs accelerators"):
            processes.check_sharding(stage)


def test_sharding_reaches_the_trainer_as_fsdp2(tmp_path):
    stage = Stage(train=["head"], sharding="fsdp")
    made = training_arguments(tmp_path, stage, plan_steps(stage, samples=16), precision="mixed")
    assert made.fsdp
    assert made.fsdp_config["version"] == 2
    assert made.bf16


SHARDED = """
import os, sys, torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
distributed.init_process_group("gloo")
torch.set_num_threads(1)
from mcompose.align.results.delta import full_values
from mcompose.align.tensor_file import raw_bytes
model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
with torch.no_grad():
    for number, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + 100.0 * number)
whole = {name: value.clone() for name, value in model.named_parameters()}
for layer in model:
    fully_shard(layer)
fully_shard(model)
assert len(raw_bytes(model[0].weight)) < whole["0.weight"].numel() * 4
found = full_values(model, ("0.weight", "1.bias"))
assert torch.equal(found["0.weight"], whole["0.weight"]) and torch.equal(found["1.bias"], whole["1.bias"])
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_are_gathered_whole(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), str(script),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    assert result.returncode == 0, result.stderr[-3000:]
