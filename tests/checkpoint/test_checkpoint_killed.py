"""Full disks and killed runs: nothing half-done looks finished, and no work is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from staged_runs import (
    LAYOUT,
    snapshot,
    whole_run,
    write_tensor,
)

from mcompose.checkpoint import StagedOutput, plan_layout
from mcompose.checkpoint.folders import JOURNAL_NAME, LOCK_NAME
from mcompose.errors import StorageError


@pytest.fixture
def reference(tmp_path):
    whole_run(tmp_path / "reference")
    return snapshot(tmp_path / "reference")


# A disk that is full ---------------------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    layout = plan_layout([("a", "U8", (10**15,))], max_shard_size=10**16)
    with StagedOutput.open(tmp_path / "out", fingerprint="one") as staged, pytest.raises(StorageError) as caught:
        staged.allocate(layout)
    assert f"{layout.total_bytes:,} bytes are needed" in str(caught.value)
    assert "are free" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; skipped where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_while_allocating_leaves_nothing(small_disk, monkeypatch):
    layout = plan_layout([(f"t{n}", "U8", (100_000,)) for n in range(4)], max_shard_size=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage())
    with (
        StagedOutput.open(small_disk / "out", fingerprint="one") as staged,
        pytest.raises(StorageError, match="disk is full"),
    ):
        staged.allocate(layout)
    assert list(small_disk.iterdir()) == []


class _Usage:
    total = used = free = 10**12


def test_a_full_disk_on_the_way_keeps_the_work(small_disk):
    with StagedOutput.open(small_disk / "out", fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        write_tensor(staged, "t0")
        with pytest.raises(StorageError, match="disk is full"):
            staged.write_file("tokenizer.json", b"x" * 300_000)
        (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bfree * 4096 - 4096))
        with pytest.raises(StorageError, match=r"cannot be written"):
            staged.record("t1", digest="x", row={"note": "x" * 10_000})
    assert not (small_disk / "out").exists()
    (small_disk / "filler").unlink()
    with StagedOutput.open(small_disk / "out", fingerprint="one") as staged:
        assert "t0" in staged.allocate(LAYOUT)


def test_a_file_size_limit_is_told(tmp_path):
    """Runs in a child, since the limit is the process's own."""
    code = f"""
import resource, signal
from pathlib import Path
from mcompose.checkpoint import StagedOutput, plan_layout
from mcompose.checkpoint.folders import JOURNAL_NAME, LOCK_NAME
from mcompose.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
layout = plan_layout([("a", "U8", (1_000_000,))], max_shard_size=10**9)
with StagedOutput.open(Path({str(tmp_path / "out")!r}), fingerprint="one") as staged:
    try:
        staged.allocate(layout)
    except StorageError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "larger than allowed" in result.stdout
    assert list(tmp_path.iterdir()) == []


# Killed at any moment --------------------------------------------------------------------------------------------

CHILD = """
import sys, time
sys.path.insert(0, sys.argv[3])
import staged_runs as t
from pathlib import Path
pause = float(sys.argv[2])
write = t.write_tensor
def slow(staged, name):
    write(staged, name)
    time.sleep(pause)
t.write_tensor = slow
print("ready", flush=True)
print(len(t.whole_run(Path(sys.argv[1]))), flush=True)
"""


def test_a_run_killed_at_any_moment_gives_the_same_bytes(tmp_path, reference):
    """kill -9 after a random time, again and again, until a run gets through."""
    dice = random.Random(1)
    folder, kills, written = tmp_path / "out", 0, []
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(60):
        command = [sys.executable, "-c", CHILD, str(folder), "0.02", str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            if kills < 12:
                time.sleep(dice.random() * 0.03)
                child.send_signal(signal.SIGKILL)
            child.wait()
            if child.returncode == 0:
                written.append(int(child.stdout.readline()))
        if folder.exists():
            found = snapshot(folder)
            for name in (JOURNAL_NAME, LOCK_NAME):  # deleted last: a run killed before that has a whole output, too
                found.pop(name, None)
            assert found == reference, "an output appeared that is not whole"
            break
        kills += 1
    assert kills >= 3
    assert whole_run(folder) == list(LAYOUT.places)  # a finished output is replaced, not resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reference"]
