"""Memory, full disks, progress: what a run may cost and how it ends when it cannot go on."""

from __future__ import annotations

import pickle
import subprocess
import sys
from compileall import compile_dir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from merge_bench import fill_disk, llama

import mcompose
from mcompose.checkpoint import LowRank, encode
from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import CheckpointError, StorageError
from mcompose.merge import Contribution, Segment, TensorJob, build_plan

CHILD = """
import pickle, sys
from mcompose.checkpoint import StagedOutput
from mcompose.merge import execute
plan, out = pickle.load(open(sys.argv[1], "rb"))
with StagedOutput.open(out, fingerprint=plan.fingerprint, durable=False) as staged:
    execute(plan, staged, threads=plan.threads)
heavy = sorted({"torch", "transformers", "mergekit"} & set(sys.modules))
status = dict(line.split(":") for line in open("/proc/self/status"))
peak, libraries = (int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssFile"))
print(peak - libraries, heavy)
"""

LIBRARIES = 64 * 2**20
"""Pages of the libraries' files in a merge, usually. Right after an installation the kernel may map twice as many;
these are its page cache and nothing that the merge takes, so they are counted with this number."""


def matrix_plan(folder, shape, method, *, sources: int, base: bool, parameters=(), random=False, threads=2):
    """One bfloat16 matrix of every source: zeros that take no disk, or noise."""
    nbytes = 2 * shape[0] * shape[1]
    inputs = []
    for number in range(sources + base):
        file = folder / str(number)
        with file.open("wb") as handle:
            if random:
                handle.write(encode(np.random.default_rng(number).normal(0, 0.02, shape).astype(np.float32), "BF16"))
            handle.truncate(nbytes)
        inputs.append(Contribution(str(number), TensorEntry("w", "BF16", shape, file, 0, nbytes)))
    origin = inputs.pop() if base else None
    segment = Segment(0, shape[0], "merged", tuple(inputs), origin, method, (1 / sources,) * sources, dict(parameters))
    job = TensorJob("w", "language", None, "BF16", shape, (segment,))
    return build_plan([job], max_shard_size=10**9, threads=threads)


def measured(folder, plan) -> tuple[int, str]:
    """Peak of a process of its own that runs the plan, and the heavy libraries that it loaded."""
    compile_dir(Path(mcompose.__file__).parent, quiet=1)  # parsing sources would take some 20 MB more, once
    pickled = folder / "plan.pickle"
    pickled.write_bytes(pickle.dumps((plan, folder / "out")))
    shown = subprocess.run(
        [sys.executable, "-c", CHILD, str(pickled)], capture_output=True, text=True, check=True
    ).stdout
    peak, heavy = shown.split(maxsplit=1)
    return int(peak) + LIBRARIES, heavy.strip()


@pytest.mark.parametrize(
    ("method", "sources", "parameters"), [("naivemc", 4, {}), ("ties", 3, {"density": 0.2})], ids=["naivemc", "ties"]
)
def test_memory_stays_under_400_mb_whatever_the_size_and_near_the_estimate(tmp_path, method, sources, parameters):
    shape = (1 << 13, 1 << 13)
    plan = matrix_plan(tmp_path, shape, method, sources=sources, base=method == "ties", parameters=parameters)
    assert plan.bytes_to_read == 4 * plan.bytes_to_write == 1 << 29
    peak, heavy = measured(tmp_path, plan)
    assert peak < 400 * 10**6
    assert abs(peak - plan.peak_memory) < 100 * 2**20
    assert heavy == "[]"


@pytest.mark.parametrize(
    ("method", "shape", "parameters"),
    [
        ("iso-c", (1024, 1024), {}),
        ("tsv", (1024, 1024), {}),
        ("optmerge", (384, 3072), {"against": "source"}),
        ("optmerge", (1024, 768), {}),
        ("swudi", (1024, 768), {}),
        ("ssam", (1024, 768), {}),
        ("ssam", (256, 3072), {}),
        ("wudi", (256, 3072), {"steps": 2}),
        ("wudi", (384, 3072), {"solver": "closed"}),
    ],
)
def test_what_is_told_of_methods_on_whole_tensors_covers_their_squares_and_is_no_exaggeration(
    tmp_path, method, shape, parameters
):
    plan = matrix_plan(tmp_path, shape, method, sources=3, base=True, parameters=parameters, random=True, threads=1)
    peak, heavy = measured(tmp_path, plan)
    assert peak <= plan.peak_memory <= 1.5 * peak
    assert heavy == "[]"


def test_iso_c_over_adapters_names_the_factor_of_its_lambda(tmp_path):
    plan = matrix_plan(tmp_path, (96, 64), "iso-c", sources=2, base=True)
    assert plan.warnings == ()
    (job,) = plan.jobs
    (segment,) = job.segments
    factors = [
        TensorEntry(name, "F32", shape, tmp_path / "0", 0, 4) for name, shape in (("a", (4, 64)), ("b", (96, 4)))
    ]
    folded = [replace(one, low_rank=LowRank("w", (96, 64), *factors)) for one in segment.contributions]
    adapted = replace(job, segments=(replace(segment, contributions=tuple(folded)),))
    (warning,) = build_plan([adapted], max_shard_size=10**9, threads=1).warnings
    assert "counts 8 times as much" in warning, "64 singular values, 4 + 4 of them not zero"


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
    sources = [bench.source(name, llama(seed)) for seed, name in ((1, "a"), (2, "b"))]
    plan = bench.plan({"method": "linear"}, sources)
    written = fill_disk(monkeypatch, after=4)
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
