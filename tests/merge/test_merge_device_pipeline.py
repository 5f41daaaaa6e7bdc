"""How a run on a device goes: copies that lag behind, work that overlaps, memory that does not grow, interruptions."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from merge_bench import fill_disk, llama, three
from torch.utils._python_dispatch import TorchDispatchMode

from mcompose.checkpoint import StagedOutput
from mcompose.checkpoint.files import TensorFiles
from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import InterruptedRunError, StorageError
from mcompose.merge import Contribution, Segment, execute
from mcompose.merge.device import stream as device_module
from mcompose.merge.device.copies import CudaQueue, Queue, host_memory
from mcompose.merge.device.memory import Accelerator
from mcompose.merge.memory import work_bytes
from mcompose.merge.program import call_whole
from mcompose.methods import METHODS
from mcompose.methods.core.method import TensorTask


class LateQueue(Queue):
    """Copies as late as it may: when a mark is waited for. Fresh memory is not finite."""

    def __init__(self, device):
        super().__init__(device)
        self.copies, self.begun = [], 0

    def empty(self, count, dtype):
        return torch.full((count,), torch.nan, dtype=dtype)

    def copy(self, target, source):
        self.copies.append((target, source))
        self.begun += 1

    def mark(self):
        return self.begun

    def wait(self, mark):
        while self.begun - len(self.copies) < mark:
            target, source = self.copies.pop(0)
            target.copy_(source)


def run_late(bench, monkeypatch, name: str, *, out: str = "late", **options):
    monkeypatch.setattr(device_module, "SLICE", 100)
    monkeypatch.setattr(device_module, "open_queue", LateQueue)
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    plan = bench.plan({"method": name, "parameters": {"density": 0.5} if name == "ties" else {}}, sources, base)
    return bench.run(plan, out=f"here-{out}"), bench.run(plan, out=out, device="torch:cpu", threads=2, **options)


@pytest.mark.parametrize("name", ["linear", "ties"])
def test_no_buffer_is_touched_before_its_copy_is_done(bench, monkeypatch, name):
    here, late = run_late(bench, monkeypatch, name)
    assert here == late


def test_the_late_queue_catches_a_stream_that_does_not_wait(bench, monkeypatch):
    awaited = device_module.TorchStream._await
    for way in ("up", "down"):
        hasty = lambda self, slot, way=way: None if slot.startswith(way) else awaited(self, slot)  # noqa: E731
        monkeypatch.setattr(device_module.TorchStream, "_await", hasty)
        here, late = run_late(bench, monkeypatch, "ties", out=f"late-{way}", check_finite=False)
        assert here != late


class Slow:
    """Takes its time over reading, computing and writing, and sees how many do each at once."""

    def __init__(self, monkeypatch, seconds: float) -> None:
        self.done, self.most, self.now, self.together = Counter(), Counter(), Counter(), set()
        self._seconds, self._lock = seconds, threading.Lock()
        self._slow(monkeypatch, TensorFiles, "read_into")
        self._slow(monkeypatch, device_module, "call_whole")
        self._slow(monkeypatch, StagedOutput, "pwrite_all")

    def _slow(self, monkeypatch, owner, name):
        work = getattr(owner, name)

        def slow(*args, **options):
            with self._lock:
                self.now[name] += 1
                self.most[name] = max(self.most[name], self.now[name])
                self.together |= {(name, other) for other, count in self.now.items() if count}
            time.sleep(self._seconds)
            with self._lock:
                self.now[name] -= 1
                self.done[name] += 1
            return work(*args, **options)

        monkeypatch.setattr(owner, name, slow)


def test_reading_computing_and_writing_overlap_and_one_computes_at_a_time(bench, monkeypatch):
    plan = bench.plan({"method": "linear"}, three(bench)[:2])
    slow = Slow(monkeypatch, 0.05)
    bench.run(plan, device="torch:cpu")
    assert slow.done["call_whole"] == len(plan.jobs)
    assert slow.most["call_whole"] == 1
    assert slow.most["read_into"] > 1
    assert {("read_into", "call_whole"), ("call_whole", "read_into")} & slow.together
    assert {("pwrite_all", "call_whole"), ("call_whole", "pwrite_all")} & slow.together


def counted(bench, monkeypatch, plan, out: str) -> list[int]:
    asked: list[int] = []

    def noted(device, nbytes):
        asked.append(nbytes)
        return host_memory(device, nbytes)

    monkeypatch.setattr(device_module, "host_memory", noted)
    bench.run(plan, out=out, device="torch:cpu", threads=1)
    return asked


@pytest.mark.parametrize("name", ["naivemc", "ties-peft"])
def test_host_buffers_are_reused_and_bounded(bench, monkeypatch, name):
    monkeypatch.setattr(device_module, "SLICE", 100)
    asked = []
    for layers in (1, 12):
        sources = [bench.source(f"s{seed}-{layers}", llama(seed, layers=layers)) for seed in (0, 1, 2)]
        plan = bench.plan({"method": name}, sources[1:], sources[0])
        asked.append(counted(bench, monkeypatch, plan, f"out{layers}"))
    assert asked[0] == asked[1]
    assert len(asked[0]) == 4  # two to read into, two to write from
    assert max(asked[0]) == 100 * 4


def test_pinned_memory_is_asked_for_on_cuda_only_and_done_without(monkeypatch):
    empty, pinned = torch.empty, []

    def watched(*size, pin_memory=False, **options):
        pinned.append(pin_memory)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", watched)
    assert host_memory(torch.device("cpu"), 8).nbytes == 8
    assert host_memory(torch.device("mps"), 8).nbytes == 8
    assert pinned == []
    assert host_memory(torch.device("cuda"), 8).nbytes == 8
    assert pinned == [True]

    def refused(*size, **options):
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch, "empty", refused)
    buffer = host_memory(torch.device("cuda"), 8)
    assert (buffer.nbytes, buffer.dtype) == (8, np.uint8)


class FakeStream:
    """Notes what is asked of a CUDA stream, under the names that the real one has."""

    def __init__(self, device=None):
        self.told, self.inside = [], 0

    def record_event(self):
        self.told.append("record_event")
        event = type("Event", (), {"synchronize": lambda _: self.told.append("event.synchronize")})
        assert hasattr(torch.cuda.Event, "synchronize")
        return event()

    def synchronize(self):
        self.told.append("synchronize")

    def __enter__(self):
        self.inside += 1

    def __exit__(self, *_):
        self.inside -= 1


def test_cuda_copies_go_to_a_stream_of_their_own_without_holding_up_the_host(monkeypatch):
    main, flags = FakeStream(), []
    for name in ("record_event", "synchronize"):
        assert hasattr(torch.cuda.Stream, name)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    queue = CudaQueue(torch.device("cpu"))
    side = queue._stream

    class Target:
        def copy_(self, source, *, non_blocking):
            flags.append((source, non_blocking, side.inside))

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **o: flags.append(side.inside) or empty(*a, **o))
    assert queue.empty(3, torch.bfloat16).shape == (3,)
    queue.copy(Target(), "source")
    assert flags == [1, ("source", True, 1)]
    queue.wait(queue.mark())
    queue.after_arithmetic()
    assert side.told == ["record_event", "event.synchronize"]
    assert main.told == ["synchronize"]


def test_threads_share_the_room_of_a_device():
    accelerator = Accelerator(torch.device("cpu"), memory=400)
    assert accelerator.fits(held=50, work=220)
    assert not accelerator.fits(held=51, work=0)
    assert not accelerator.fits(held=0, work=221)
    held, most, lock, start = [0], [0], threading.Lock(), threading.Barrier(4)

    def hold(count: int) -> None:
        start.wait()
        for _ in range(20):
            with accelerator.room(count):
                with lock:
                    held[0] += count
                    most[0] = max(most[0], held[0])
                time.sleep(0.0005)
                with lock:
                    held[0] -= count

    threads = [threading.Thread(target=hold, args=(count,)) for count in (50, 50, 40, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50 < most[0] <= 100


class Weighed(TorchDispatchMode):
    """Adds up the bytes of all tensors that are alive; keeps the most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._weigh(tensor.untyped_storage())
        return out

    def _weigh(self, storage):
        key, nbytes = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, nbytes)

    def _gone(self, key, nbytes):
        self._known.discard(key)
        self.now -= nbytes


HALF = {"density": 0.5, "rescale": "mergekit"}
HUNGRY = {
    "slerp": {"t": 0.3}, "nuslerp": {"nuslerp_flatten": False}, "model_stock": {"filter_wise": True},
    "ties": HALF, "dare_linear": HALF, "dare_ties": HALF, "della": HALF, "della_linear": HALF, "breadcrumbs": HALF,
    "breadcrumbs_ties": HALF, "wudi": {"steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("many", [2, 5])
@pytest.mark.parametrize("shape", [(64, 256), (128, 128), (256, 64)])
@pytest.mark.parametrize("name", METHODS.names())
def test_the_estimate_covers_what_every_method_takes(tmp_path, name, shape, many):
    method = METHODS.get(name)
    many = min(many, method.max_sources or many)
    entry = TensorEntry("w", "F32", shape, tmp_path, 0, 0)
    inputs = tuple(Contribution(str(number), entry) for number in range(many))
    segment = Segment(0, shape[0], "merged", inputs, inputs[0] if method.base != "unused" else None, name)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for _ in segment.inputs]
    base = values.pop() if segment.base else None
    task = TensorTask("w", shape, tuple("abcde"[:many]), (1 / many,) * many, HUNGRY.get(name, {}))
    with Weighed() as weighed:
        call_whole(method, task, values, base)
    taken = weighed.most + 4 * len(segment.inputs) * shape[0] * shape[1]
    assert taken <= work_bytes(segment, shape)


def interrupted_after(bench, plan, count: int, **options) -> None:
    with StagedOutput.open(bench.folder / "out", fingerprint=plan.fingerprint, durable=False) as staged:
        record = staged.record

        def record_and_interrupt(name, **facts):
            record(name, **facts)
            if len(staged.finished) == count:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)

        staged.record = record_and_interrupt
        with pytest.raises(InterruptedRunError, match=rf"{count} of {len(plan.jobs)} tensors are finished"):
            execute(plan, staged, **options)


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(bench):
    plan = bench.plan({"method": "ties", "parameters": {"density": 0.5}}, three(bench), bench.source("base", llama(0)))
    interrupted_after(bench, plan, 3, device="torch:cpu", threads=1)

    class Told:
        total = done = told = 0

        def start(self, total_bytes, done_bytes):
            self.total, self.done = total_bytes, done_bytes

        def advance(self, nbytes):
            self.told += nbytes

        def finish(self):
            pass

    told = Told()
    rows = bench.run(plan, device="torch:cpu", progress=told)
    assert told.done > 0
    assert told.done + told.told == told.total == plan.bytes_to_write
    assert rows == bench.run(plan, out="fresh", device="torch:cpu")
    assert bench.bytes_of("out") == bench.bytes_of("fresh")


def test_a_refused_write_stops_all_threads(bench, monkeypatch):
    plan = bench.plan({"method": "linear"}, three(bench, layers=8))
    written = fill_disk(monkeypatch, after=3)
    with pytest.raises(StorageError, match="the disk is full"):
        bench.run(plan, device="torch:cpu")
    assert len(written) <= 3 + device_module.DEVICE_THREADS
    assert not (bench.folder / "out").exists()


CHILD = """
import pickle, sys
from mcompose.checkpoint import StagedOutput
from mcompose.merge import execute
from mcompose.merge import device
device.SLICE = 256
plan, out = pickle.load(open(sys.argv[1], "rb"))
with StagedOutput.open(out, fingerprint=plan.fingerprint, durable=False) as staged:
    record = staged.record
    def told(name, **facts):
        record(name, **facts)
        print(name, flush=True)
    staged.record = told
    execute(plan, staged, device="torch:cpu")
    staged.finish()
"""


def test_a_kill_changes_no_byte(bench):
    sources, base = three(bench, "BF16"), bench.source("base", llama(0, dtype="BF16"))
    plan = bench.plan({"method": "dare_ties", "parameters": {"density": 0.5}}, sources, base, shard=3000)
    bench.run(plan, out="fresh", device="torch:cpu")
    pickled = bench.folder / "plan.pickle"
    pickled.write_bytes(pickle.dumps((plan, bench.folder / "out")))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(pickled)], stdout=subprocess.PIPE)
    for _ in range(4):
        child.stdout.readline()
    child.kill()
    child.stdout.close()
    child.wait()
    if not (bench.folder / "out").exists():
        bench.run(plan, device="torch:cpu")
    assert bench.bytes_of("out") == bench.bytes_of("fresh")


def test_the_clock_tells_reading_computing_hashing_and_writing(bench, monkeypatch):
    plan = bench.plan({"method": "linear"}, three(bench))
    with StagedOutput.open(bench.folder / "out", fingerprint=plan.fingerprint, durable=False) as staged:
        staged.allocate(plan.layout)  # writes the headers, which are no tensor's time
        slow = Slow(monkeypatch, 0.002)
        seconds = execute(plan, staged, device="torch:cpu", threads=1).seconds
    for stage, name in (("read", "read_into"), ("compute", "call_whole"), ("write", "pwrite_all")):
        assert seconds[stage] > 0.99 * 0.002 * slow.done[name] > 0  # no sleep is shorter, but for the clocks' grain
    assert seconds["hash"] > 0
