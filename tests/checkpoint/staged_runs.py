"""Small outputs, written whole or in part, for the tests of the staged output."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mcompose.checkpoint import StagedOutput, TensorDigest, plan_layout

SPECS = [(f"t{number}", "U8", (1000 + number,)) for number in range(8)]
LAYOUT = plan_layout(SPECS, max_shard_size=3000)
LOCK = json.dumps({"files": {"config.json": {"size": 2}, **{shard.filename: {} for shard in LAYOUT.shards},
                             "model.safetensors.index.json": {}}})  # fmt: skip


def content(name: str) -> bytes:
    return random.Random(name).randbytes(LAYOUT.places[name].nbytes)


def digest_of(data: bytes) -> str:
    digest = TensorDigest()
    digest.update(data)
    return digest.text()


def write_tensor(staged: StagedOutput, name: str) -> None:
    place, data = LAYOUT.places[name], content(name)
    for start in range(0, len(data), 300):
        staged.pwrite_all(place.filename, place.offset + start, memoryview(data[start : start + 300]))
    staged.record(name, digest=digest_of(data), row={"name": name, "action": "merged"})


def write_files(staged: StagedOutput) -> None:
    staged.write_file("config.json", "{}")
    staged.write_file("mcompose/lock.json", LOCK)


def whole_run(folder: Path, *, fingerprint: str = "one", resume: bool = True) -> list[str]:
    """A whole run; returns the tensors that it had to write."""
    with StagedOutput.open(folder, fingerprint=fingerprint, resume=resume) as staged:
        finished = staged.allocate(LAYOUT)
        todo = [name for name in LAYOUT.places if name not in finished]
        for name in todo:
            write_tensor(staged, name)
        write_files(staged)
        assert staged.finish() == folder.resolve()
    return todo


def half_run(folder: Path, *, fingerprint: str = "one") -> None:
    """A run that stops after three tensors, in the middle of the fourth."""
    with StagedOutput.open(folder, fingerprint=fingerprint) as staged:
        staged.allocate(LAYOUT)
        for name in list(LAYOUT.places)[:3]:
            write_tensor(staged, name)
        place = LAYOUT.places["t3"]
        staged.pwrite_all(place.filename, place.offset, memoryview(b"torn"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED_FILES = {
    "config.json",
    "mcompose/lock.json",
    "model.safetensors.index.json",
    *(f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)),
}
