"""Memory, full disks, progress: what a run may cost and how it ends when it cannot go on."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys

import pytest
from merge_bench import llama

from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import CheckpointError, StorageError
from mcompose.merge import Bar, Contribution, Segment, TensorJob, build_plan
from mcompose.merge.progress import Shared

CHILD = """
import pickle, sys
from mcompose.checkpoint import StagedOutput
from mcompose.merge import execute
plan, out = pickle.load(open(sys.argv[1], "rb"))
with StagedOutput.open(out, fingerprint=plan.fingerprint, durable=False) as staged:
    execute(plan, staged, threads=2)
heavy = sorted({"torch", "transformers", "mergekit"} & set(sys.modules))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, heavy)
"""


def zeros_plan(folder, method: str):
    """Four sources of 128 MB that take no disk: one matrix of 64 M bfloat16 zeros each."""
    shape = (1 << 13, 1 << 13)
    nbytes = 2 * shape[0] * shape[1]
    inputs = []
    for name in ("a", "b", "c", "d"):
        file = folder / name
        with file.open("wb") as handle:
            handle.truncate(nbytes)
        inputs.append(Contribution(name, TensorEntry("w", "BF16", shape, file, 0, nbytes)))
    base = inputs.pop() if method == "ties" else None
    weights = (1.0 / len(inputs),) * len(inputs)
    parameters = {"density": 0.2} if method == "ties" else {}
    segment = Segment(0, shape[0], "merged", tuple(inputs), base, method, weights, parameters)
    return build_plan([TensorJob("w", "language", None, "BF16", shape, (segment,))], max_shard_size=10**9, threads=2)


@pytest.mark.parametrize("method", ["naivemc", "ties"])
def test_memory_stays_under_400_mb_whatever_the_size_and_near_the_estimate(tmp_path, method):
    plan = zeros_plan(tmp_path, method)
    assert plan.bytes_to_read == 4 * plan.bytes_to_write == 1 << 29
    pickled = tmp_path / "plan.pickle"
    pickled.write_bytes(pickle.dumps((plan, tmp_path / "out")))
    shown = subprocess.run(
        [sys.executable, "-c", CHILD, str(pickled)], capture_output=True, text=True, check=True
    ).stdout
    peak, heavy = shown.split(maxsplit=1)
    assert int(peak) < 400 * 10**6
    assert abs(int(peak) - plan.peak_memory) < 100 * 2**20
    assert heavy.strip() == "[]"


def test_a_full_disk_is_a_sentence_and_leaves_no_output(bench):
    sources = [bench.source(name, llama(seed)) for seed, name in ((1, "a"), (2, "b"))]
    plan = bench.plan({"method": "linear"}, sources)
    pickled = bench.folder / "plan.pickle"
    pickled.write_bytes(pickle.dumps((plan, bench.folder / "out")))
    child = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    child += "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    child += "from mcompose.errors import StorageError\ntry:\n"
    child += "".join(f"    {line}\n" for line in CHILD.strip().splitlines())
    child += "except StorageError as error:\n    print(error.exit_code, error)\n"
    shown = subprocess.run(
        [sys.executable, "-B", "-c", child, str(pickled)], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("1 ")
    assert "cannot be written" in shown
    assert not (bench.folder / "out").exists()


def test_a_refused_write_stops_all_threads(bench, monkeypatch):
    from mcompose.checkpoint import StagedOutput

    sources = [bench.source(name, llama(seed)) for seed, name in ((1, "a"), (2, "b"))]
    plan = bench.plan({"method": "linear"}, sources)
    written, write = [], StagedOutput.pwrite_all

    def full_after_three(self, shard, offset, data):
        written.append(offset)
        if len(written) > 4:
            raise StorageError("the disk is full")
        write(self, shard, offset, data)

    monkeypatch.setattr(StagedOutput, "pwrite_all", full_after_three)
    with pytest.raises(StorageError, match="the disk is full"):
        bench.run(plan, threads=2)
    assert len(written) <= 6
    assert not (bench.folder / "out").exists()


def test_a_source_that_is_cut_while_it_is_read_is_named(bench):
    sources = [bench.source(name, llama(seed)) for seed, name in ((1, "a"), (2, "b"))]
    plan = bench.plan({"method": "linear"}, sources)
    file = sources[1].checkpoint.folder / "model.safetensors"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors' ends at byte \d+, inside tensor"):
        bench.run(plan, threads=2)


def test_the_bar_shows_speed_on_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    bar = Bar()
    bar.start(100, 0)
    bar.advance(50)
    bar.finish()
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar("merge")
    bar.start(2_000_000, 500_000)
    bar.advance(1_000_000)
    bar.finish()
    assert "merge" in terminal.getvalue()
    assert "B/s" in terminal.getvalue()


def test_progress_is_told_every_byte_in_large_steps():
    told = []

    class Listener:
        def start(self, total_bytes, done_bytes):
            pass

        def advance(self, nbytes):
            told.append(nbytes)

        def finish(self):
            pass

    shared = Shared(Listener(), step=100)
    for _ in range(25):
        shared.advance(30)
    shared.flush()
    assert sum(told) == 750
    assert len(told) == 7
    assert json.dumps(told)
