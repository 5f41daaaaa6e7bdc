"""What ``merge`` does when it is asked for more: hashes, times, a disk that has everything."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from command_line import linear_recipe, run

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_hub import FakeHub
from hub_client import run_client

from mcompose.merge.clock import STAGES

PHASES = ["plan", "compare bases", "small files", "allocate", "weights", "records", "finish"]


def lock_of(output: Path) -> dict:
    return json.loads((output / "mcompose" / "lock.json").read_text())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_sha256_puts_the_hashes_of_the_weight_files_into_the_lock(folder, monkeypatch):
    path = linear_recipe(folder, output={"dir": "out", "max_shard_size": "100KB"})
    assert run(["merge", path, "--quiet", "--sha256", "-o", folder / "hashed"], monkeypatch) == 0
    assert run(["merge", path, "--quiet", "-o", folder / "plain"], monkeypatch) == 0
    weights = {file.name: file.read_bytes() for file in (folder / "hashed").glob("*.safetensors")}
    assert len(weights) > 1
    hashed, plain = lock_of(folder / "hashed")["files"], lock_of(folder / "plain")["files"]
    for name, data in weights.items():
        assert hashed.pop(name) == {"size": len(data), "sha256": sha256(data)}
        assert plain.pop(name) == {"size": len(data)}
    assert hashed == plain
    assert run(["verify", folder / "hashed"], monkeypatch) == 0


def test_profile_tells_where_the_time_went_and_costs_no_byte(folder, monkeypatch, capsys):
    path = linear_recipe(folder)
    arguments = ["merge", path, "--quiet", "--threads", "1", "--json"]
    assert run([*arguments, "--profile"], monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    phases, threads = told["profile"]["phases"], told["profile"]["threads"]
    assert list(phases) == PHASES
    assert list(threads) == list(STAGES)
    assert all(seconds >= 0 for seconds in [*phases.values(), *threads.values()])
    rounding = 0.0005 * (len(PHASES) + len(STAGES) + 1)
    assert 0 < sum(threads.values()) <= phases["weights"] + rounding, "one thread cannot work longer than the phase"
    assert phases["weights"] < sum(phases.values()) <= told["seconds"] + rounding
    assert run(arguments, monkeypatch) == 0
    assert "profile" not in json.loads(capsys.readouterr().out)


def test_profile_is_talk_where_the_report_is_no_json(folder, monkeypatch, capsys):
    assert run(["merge", linear_recipe(folder), "--quiet", "--profile"], monkeypatch) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.err.splitlines() if line.endswith(" s")]
    assert [" ".join(row[:-2]) for row in rows[: len(PHASES)]] == PHASES
    assert "compare bases" not in printed.out


@pytest.fixture
def synced(monkeypatch) -> set[int]:
    """Inodes that the disk was waited for."""
    seen: set[int] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        seen.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return seen


def test_sync_waits_for_every_file_and_every_folder(folder, monkeypatch, synced):
    path = linear_recipe(folder, output={"dir": "out", "max_shard_size": "100KB"})
    assert run(["merge", path, "--quiet", "--sync"], monkeypatch) == 0
    output = folder / "out"
    missed = [str(entry) for entry in (folder, output, *output.rglob("*")) if entry.stat().st_ino not in synced]
    assert missed == []


def test_without_sync_nothing_waits_for_the_disk(folder, monkeypatch, synced):
    assert run(["merge", linear_recipe(folder), "--quiet"], monkeypatch) == 0
    assert synced == set()


MERGE = """
from mcompose.pipeline.write import MergeOptions, merge
result = str(merge(Path({recipe!r}), options=MergeOptions(quiet=True)).result.folder)
"""


def test_the_lock_holds_what_the_hub_states_of_its_weight_files(folder):
    files = {file.name: file.read_bytes() for file in (folder / "expert").iterdir()}
    entries = [{"name": "near", "model": "local:base"}, {"name": "far", "model": "hub:org/expert@main"}]
    path = linear_recipe(folder, sources=entries)
    with FakeHub() as hub:
        commit = hub.add("org/expert", files)
        run_client(hub, folder / "home", MERGE.format(recipe=str(path)))
    sources = lock_of(folder / "out")["sources"]
    weights = files["model.safetensors"]
    assert (sources["far"]["ref"], sources["far"]["commit"]) == ("hub:org/expert@main", commit)
    assert sources["far"]["files"]["model.safetensors"] == {"size": len(weights), "sha256": sha256(weights)}
    assert sources["far"]["files"]["config.json"]["sha256"] == sha256(files["config.json"])
    assert sources["near"]["commit"] is None
    assert list(sources["near"]["files"]["model.safetensors"]) == ["size"]
    resolved = (folder / "out" / "mcompose" / "resolved.yaml").read_text()
    assert f"model.safetensors: sha256:{sha256(weights)}" in resolved
    assert f"hub:org/expert@{commit}" in resolved
