"""One measured turn: a pause, the page cache made cold or warm, the command.

Freshly allocated pages are slow on a virtual machine (the first touch of each asks the hypervisor), while pages that
were freed a moment ago are fast. So every turn ends by deleting what it wrote, and the next one starts after a pause:
all turns then meet the same state.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.bench import cache
from examples.bench.measure import Cost, run


@dataclass(frozen=True)
class Turn:
    """One run of one tool.

    Attributes:
        label: Name of the measurement: a method, or a point of a curve.
        tool: ``mcompose``, ``mergekit``, ``cp``, ...
        number: Number of the round, from 1; 0 is the warm-up.
        cost: Cost of the run.
        cached: Share of the inputs that was in the page cache just before.
        load: The machine's 1-minute load just before.
    """

    label: str
    tool: str
    number: int
    cost: Cost
    cached: float | None
    load: float

    def to_dict(self) -> dict[str, object]:
        """Returns one row of the results file."""
        row = {name: value for name, value in asdict(self).items() if name != "cost"}
        return row | asdict(self.cost)


@dataclass(frozen=True)
class Job:
    """A command with its input files and its output folder."""

    label: str
    tool: str
    command: list[str]
    inputs: Sequence[Path]
    output: Path | None = None


def take(job: Job, *, number: int, cold: bool = False, settle: float = 3.0) -> Turn:
    """Runs one job; its output stays, for ``clear`` to delete.

    Args:
        job: Job to run.
        number: Number of the round.
        cold: Whether to drop the inputs from the page cache first.
        settle: Seconds of pause before the run.
    """
    clear(job)
    os.sync()
    time.sleep(settle)
    if cold:
        cache.drop(job.inputs)
    share, load = cache.cached(job.inputs), os.getloadavg()[0]
    if cold:
        cache.drop(job.inputs)
    turn = Turn(job.label, job.tool, number, run(job.command), share, round(load, 2))
    name = "warm-up" if not number else f"round {number}"
    print(f"  {name:8} {job.label:16} {job.tool:9} {turn.cost.wall:8.2f} s", file=sys.stderr, flush=True)
    return turn


def clear(job: Job) -> None:
    """Deletes what a job wrote."""
    if job.output is None or not job.output.exists():
        return
    if job.output.is_dir():
        shutil.rmtree(job.output)
    else:
        job.output.unlink()


def copy_jobs(label: str, inputs: Sequence[Path], *, output: Path) -> tuple[Job, Job]:
    """Makes the two lower bounds: ``cp`` of the output's bytes, and reading all inputs before that copy.

    The first input file replaces the output, which has the same size.
    """
    one = str(inputs[0])
    script = 'target=$1; shift; cat "$@" > /dev/null; cp "$1" "$target"'
    both = ["sh", "-c", script, "sh", str(output), *map(str, inputs)]
    return (
        Job(label, "cp", ["cp", one, str(output)], inputs[:1], output),
        Job(label, "cat + cp", both, inputs, output),
    )
