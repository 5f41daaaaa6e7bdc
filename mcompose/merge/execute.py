"""Runs a plan: distributes jobs to threads and records finished tensors in the journal.

One tensor is one job, which one thread runs from the first element to the last; the largest jobs run first, so that the
threads end at about the same time. Every output byte has a fixed place, so jobs may finish in any order, and the result
does not depend on the number of threads or interruptions. A finished tensor is a line in the journal; the next run of
the same plan skips it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mcompose.checkpoint import JournalRow, Layout, TensorFiles
from mcompose.errors import InterruptedRunError
from mcompose.ledger import TensorRow
from mcompose.merge.clock import Clock
from mcompose.merge.job import MergePlan, TensorJob
from mcompose.merge.stream import Cancelled, JobStream, Made, Write
from mcompose.merge.survey import Surveys
from mcompose.progress import Progress, ProgressBar, SharedProgress

__all__ = ["Executed", "TensorSink", "default_threads", "execute"]

MAX_DEFAULT_THREADS = 16
"""With more threads, memory bandwidth is the limit and not arithmetic."""

Item = TypeVar("Item")


class TensorSink(Protocol):
    """Target of a merge: the folder of an output (``StagedOutput``), or the model of a search."""

    @property
    def partial(self) -> Path | str:
        """Name of the place with the finished tensors, for the message of an interrupted run."""
        ...

    def allocate(self, layout: Layout) -> Mapping[str, JournalRow]:
        """Allocates space for every tensor of a layout; returns tensors that an earlier run has finished, by name."""
        ...

    def pwrite_all(self, shard: str, offset: int, data: memoryview) -> None:
        """Writes bytes to their place in a file of the layout; called from any thread, in any order."""
        ...

    def record(self, name: str, *, digest: str, row: Mapping[str, Any] | None = None) -> None:
        """Records that all bytes of a tensor were written; called from any thread.

        Args:
            name: Name of the tensor.
            digest: ``xxh3:<hex>`` of its bytes.
            row: Plain data that ``allocate`` returns to a resumed run.
        """
        ...


@dataclass(frozen=True)
class Executed:
    """Result of a run.

    Args:
        rows: Rows of the ledger: one for each output tensor in output order, then dropped tensors.
        seconds: Seconds by stage (``clock.STAGES``), summed over the threads.
    """

    rows: tuple[TensorRow, ...]
    seconds: Mapping[str, float]


def default_threads() -> int:
    """Returns the default number of threads: one per core that this process may use."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)


def execute(
    plan: MergePlan,
    sink: TensorSink,
    *,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    check_finite: bool = True,
) -> Executed:
    """Writes every tensor of a plan into its place.

    Args:
        plan: The plan; an output folder must have been opened with its fingerprint.
        sink: Target of the tensors; the caller finishes and closes it.
        threads: Number of threads; None for one per core (fewer on a device). The bytes do not depend on it.
        device: ``cpu`` for the compiled kernels, or a torch device (``cuda``, ``cuda:1``). ``torch:cpu`` runs the code
            for torch devices on the CPU, for tests; it has not been run on a GPU.
        progress: Receives the written bytes.
        check_finite: Whether a NaN or infinity in a source or in the result is an error.

    Returns:
        The rows of the ledger, and the time by stage.

    Raises:
        NumericsError: A tensor is not finite; the message names source, tensor and element.
        CompositionError: Tensors that cannot be merged differ between sources.
        CheckpointError: A source cannot be read.
        StorageError: The disk is full or refused a write.
        InterruptedRunError: Ctrl-C; finished tensors are kept for the next run.
    """
    finished = {name: _made(row) for name, row in sink.allocate(plan.layout).items()}
    run = _Run(plan, sink, finished=finished, progress=progress or ProgressBar(quiet=True), check_finite=check_finite)
    if device != "cpu":
        from mcompose.merge.device.stream import DEVICE_THREADS, torch_streams  # noqa: PLC0415 - torch, when asked for

        run.make_stream = torch_streams(device.removeprefix("torch:"))
        threads = threads or DEVICE_THREADS
    run.all_jobs(threads=threads or default_threads())
    made = [(job, run.finished[job.name]) for job in plan.jobs]
    rows = [job.ledger_row(tensor.digest, inputs=tensor.inputs) for job, tensor in made]
    rows += [entry.ledger_row() for entry in plan.dropped]
    return Executed(tuple(rows), Clock.total(run.clocks))


def _made(row: JournalRow) -> Made:
    return Made(row.digest, tuple(row.row.get("inputs", ())))


@dataclass
class _Run:
    """The state that the threads share."""

    plan: MergePlan
    sink: TensorSink
    finished: dict[str, Made]
    progress: Progress
    check_finite: bool
    clocks: list[Clock] = field(default_factory=list[Clock])
    files: TensorFiles = field(default_factory=TensorFiles)
    cancelled: threading.Event = field(default_factory=threading.Event)
    make_stream: Callable[..., JobStream] = JobStream

    def all_jobs(self, *, threads: int) -> None:
        """Runs the surveys of the whole model, then makes every tensor that is not finished yet."""
        todo = [job for job in self.plan.jobs if job.name not in self.finished]
        done_bytes = sum(job.nbytes for job in self.plan.jobs) - sum(job.nbytes for job in todo)
        self.progress.start(self.plan.bytes_to_write, done_bytes)
        shared = SharedProgress(self.progress)
        try:
            surveys = Surveys.of(self.plan.jobs) if todo else Surveys()
            for index in range(surveys.passes):
                self._spread(surveys.segments(index), surveys.measurer(index), shared, threads=threads)
                surveys.finish(index)
            largest_first = sorted(todo, key=lambda job: -job.nbytes * _inputs(job))
            self._spread(largest_first, self._maker(surveys), shared, threads=threads)
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            shared.flush()
            self.progress.finish()
            self.files.close()

    def _maker(self, surveys: Surveys) -> Callable[[JobStream, TensorJob], None]:
        def make(stream: JobStream, job: TensorJob) -> None:
            made = stream.run(job, _writer(self.sink, self.plan.layout, job), surveys=surveys)
            self.sink.record(job.name, digest=made.digest, row={"inputs": list(made.inputs)})
            self.finished[job.name] = made

        return make

    def _spread(
        self, items: Sequence[Item], work: Callable[[JobStream, Item], None], shared: SharedProgress, *, threads: int
    ) -> None:
        """Distributes the items to threads in order; the first error stops all threads and is raised."""
        queue, lock = iter(items), threading.Lock()
        go = threading.Event()  # threads wait for it, so that an interrupt during their start leaves none running

        def worker() -> None:
            go.wait()
            clock = Clock()
            self.clocks.append(clock)
            stream = self.make_stream(
                files=self.files,
                cancelled=self.cancelled,
                advance=shared.advance,
                check_finite=self.check_finite,
                clock=clock,
            )
            while not self.cancelled.is_set():
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                try:
                    work(stream, item)
                except Cancelled:
                    return
                except BaseException:
                    self.cancelled.set()
                    raise

        count = max(1, min(threads, len(items)))
        with ThreadPoolExecutor(count, thread_name_prefix="mcompose-merge") as pool:
            try:
                futures = [pool.submit(worker) for _ in range(count)]
                go.set()
                wait(futures)
            except BaseException:
                self.cancelled.set()
                go.set()
                raise
        _raise_first(futures)

    def _interrupted(self) -> InterruptedRunError:
        kept, total = len(self.finished), len(self.plan.jobs)
        return InterruptedRunError(
            f"Interrupted: {kept} of {total} tensors are finished and kept in '{self.sink.partial}'.",
            hint="Run the same command again to resume; '--no-resume' starts from the beginning.",
        )


def _writer(sink: TensorSink, layout: Layout, job: TensorJob) -> Write:
    place = layout.places[job.name]

    def write(offset: int, block: memoryview) -> None:
        sink.pwrite_all(place.filename, place.offset + offset, block)

    return write


def _inputs(job: TensorJob) -> int:
    return max((len(segment.inputs) for segment in job.segments), default=0) or 1


def _raise_first(futures: Sequence[Future[None]]) -> None:
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
