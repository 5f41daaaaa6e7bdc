"""Runs that are interrupted or killed at any point go on from what is finished, to the same bytes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from merge_bench import llama, three

from mcompose.checkpoint import StagedOutput
from mcompose.errors import InterruptedRunError
from mcompose.merge import execute
from mcompose.merge.stream import JobStream


def test_ctrl_c_while_the_threads_start_leaves_none_at_work(bench, monkeypatch):
    plan = bench.plan({"method": "linear"}, [bench.source(name, llama(seed)) for seed, name in ((1, "a"), (2, "b"))])
    submit = ThreadPoolExecutor.submit

    def submit_and_interrupt(pool, work):
        submit(pool, work)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_and_interrupt)
    with (
        StagedOutput.open(bench.folder / "out", fingerprint=plan.fingerprint, durable=False) as staged,
        pytest.raises(InterruptedRunError, match=rf"0 of {len(plan.jobs)} tensors are finished"),
    ):
        execute(plan, staged, threads=2)


def test_ctrl_c_keeps_what_is_finished(bench, monkeypatch):
    events, run = [], JobStream.run

    def noted(self, *args, **kwargs):
        events.append(self.cancelled)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(JobStream, "run", noted)
    sources = three(bench)
    plan = bench.plan({"method": "linear"}, sources)

    class Impatient:
        told = 0

        def start(self, total_bytes, done_bytes):
            self.total, self.done = total_bytes, done_bytes

        def advance(self, nbytes):
            self.told += nbytes

        def finish(self):
            pass

    with StagedOutput.open(bench.folder / "out", fingerprint=plan.fingerprint, durable=False) as staged:
        record = staged.record

        def record_and_interrupt(name, **facts):
            record(name, **facts)
            if len(staged.finished) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                stop = time.monotonic() + 60  # on a busy machine the main thread may be late to cancel
                while not any(event.is_set() for event in events) and time.monotonic() < stop:
                    time.sleep(0.01)

        staged.record = record_and_interrupt
        with pytest.raises(InterruptedRunError, match=rf"3 of {len(plan.jobs)} tensors are finished"):
            execute(plan, staged, threads=1)
    progress = Impatient()
    rows = bench.run(plan, progress=progress)
    assert progress.done > 0
    assert progress.done + progress.told == progress.total == plan.bytes_to_write
    bench.run(plan, out="fresh")
    assert bench.bytes_of("out") == bench.bytes_of("fresh")
    assert all(row.digest.startswith("xxh3:") for row in rows)


CHILD = """
import pickle, sys
from pathlib import Path
from mcompose.checkpoint import StagedOutput
from mcompose.merge import execute
from mcompose.merge.stream import JobStream
import mcompose.merge.stream as stream
stream.CHUNK = 256
plan, out = pickle.load(open(sys.argv[1], "rb"))
with StagedOutput.open(out, fingerprint=plan.fingerprint, durable=False) as staged:
    record, count = staged.record, [0]
    def slow(name, **facts):
        record(name, **facts)
        print(name, flush=True)
    staged.record = slow
    execute(plan, staged, threads=2)
    staged.finish()
"""


@pytest.mark.parametrize("kill_after", [0, 1, 4, 9])
def test_a_kill_at_any_point_changes_no_byte(bench, kill_after):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    plan = bench.plan({"method": "dare_ties", "parameters": {"density": 0.5}}, sources, base, shard=3000)
    bench.run(plan, out="fresh")
    pickled = bench.folder / "plan.pickle"
    pickled.write_bytes(pickle.dumps((plan, bench.folder / "out")))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(pickled)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    for _ in range(kill_after):
        child.stdout.readline()
    child.kill()
    child.stdout.close()
    child.wait()
    if not (bench.folder / "out").exists():
        bench.run(plan)
    assert bench.bytes_of("out") == bench.bytes_of("fresh")
