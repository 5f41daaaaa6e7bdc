"""mcompose beside mergekit and ``cp``, on random Llama checkpoints in bfloat16.

    make bench
    python -m examples.bench.merge --gb 0.25 --rounds 1 --methods linear ties
    python -m examples.bench.merge --rounds 5 --peer-rounds 1    # mergekit's ties takes minutes per run
    python -m examples.bench.merge --cold                        # inputs dropped from the page cache before every run
    python -m examples.bench.merge --gb 0.25 --rounds 1 --peer-dtype float32    # do the outputs agree in float32?

Builds a base and three fine-tunes once (``build/bench``), then takes turns: for every method ``cp`` of the output's
bytes, reading the inputs and ``cp``, mcompose, mergekit, the next round in the opposite order, so that a noisy moment
of the machine hits all. One unmeasured run of each mcompose merge and of the first mergekit merge comes first (compiled
kernels, imports). The outputs are compared in the first round. Every run is saved with machine and versions;
``examples.bench.table`` prints the file again.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from examples.bench.cache import can_be_cold
from examples.bench.llama import of_size
from examples.bench.machine import machine, save
from examples.bench.measure import run
from examples.bench.recipes import METHODS, mcompose_command, merged, mergekit_command
from examples.bench.table import render
from examples.bench.turn import Job, Turn, clear, copy_jobs, take

FOLDER = Path("build/bench")


@dataclass
class Bench:
    """The turns of one benchmark, and what they found."""

    folder: Path
    options: argparse.Namespace
    turns: list[Turn] = field(default_factory=list)
    agreement: dict[str, object] = field(default_factory=dict)

    def jobs(self, method: str) -> dict[str, Job]:
        """Makes the four jobs of one method."""
        inputs = [self.folder / name / "model.safetensors" for name in merged(method)]
        copy, both = copy_jobs(method, inputs, output=self.folder / "cp")
        ours = mcompose_command(self.folder, method)
        theirs = mergekit_command(self.folder, method, dtype=self.options.peer_dtype)
        return {
            "cp": copy,
            "cat + cp": both,
            "mcompose": Job(method, "mcompose", ours, inputs, self.folder / f"mcompose-{method}"),
            "mergekit": Job(method, "mergekit", theirs, inputs, self.folder / f"mergekit-{method}"),
        }

    def take(self, job: Job, number: int) -> None:
        """Runs one turn and keeps its figures."""
        self.turns.append(take(job, number=number, cold=self.options.cold, settle=self.options.settle))

    def warm_up(self) -> None:
        """Runs each command once, for what only a first run costs: compiled kernels, imports, reading inputs."""
        for method in self.options.methods:
            jobs = self.jobs(method)
            peers = ["mergekit"] if self.options.peer_rounds and method == self.options.methods[0] else []
            for tool in ["cat + cp", "mcompose", *peers]:
                self.take(jobs[tool], 0)
                clear(jobs[tool])

    def round(self, number: int) -> None:
        """Runs everything once."""
        for method in self.options.methods:
            jobs = self.jobs(method)
            if number > self.options.peer_rounds:
                del jobs["mergekit"]
            compared = number == 1 and "mergekit" in jobs
            for job in list(jobs.values())[:: 1 if number % 2 else -1]:
                self.take(job, number)
                if job.tool not in {"mcompose", "mergekit"} or not compared:
                    clear(job)
            if compared:
                self.agreement[method] = self.compare(method)
                clear(jobs["mcompose"])
                clear(jobs["mergekit"])

    def compare(self, method: str) -> object:
        """Compares the two outputs in a process of its own, to keep this one small."""
        command = [sys.executable, "-m", "examples.bench.agree", str(self.folder), method]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="mcompose beside mergekit and cp.")
    parser.add_argument("--gb", type=float, default=1.0, help="size of one checkpoint in GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, help="mergekit runs in the first so many rounds only")
    parser.add_argument(
        "--peer-dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of mergekit's deltas"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before every run")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds of pause before every run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where checkpoints and results are kept")
    options = parser.parse_args()
    options.peer_rounds = options.rounds if options.peer_rounds is None else options.peer_rounds
    return options


def main() -> None:
    """Runs the benchmark and prints the table."""
    options = arguments()
    found = machine()
    model = of_size(options.gb)
    folder = (options.folder / model.name).resolve()
    run([sys.executable, "-m", "examples.bench.build", str(folder), str(options.gb)])
    bench = Bench(folder, options)
    inputs = [folder / name / "model.safetensors" for name in ("base", "a", "b", "c")]
    if options.cold and not can_be_cold(inputs):
        print("The page cache cannot be dropped on this file system, so no cold run is possible.", file=sys.stderr)
        return
    cache = "cold" if options.cold else "warm"
    settings = {name: value for name, value in vars(options).items() if name != "folder"}
    settings |= {"cache": cache, "checkpoint_bytes": model.nbytes}
    path = folder / f"results-{cache}{'' if options.peer_dtype == 'bfloat16' else '-float32'}.json"
    bench.warm_up()
    for number in range(1, options.rounds + 1):
        bench.round(number)
        save(path, bench.turns, machine=found, settings=settings, agreement=bench.agreement)
    results = json.loads(path.read_text())
    print(render(results))
    print(f"\nsaved in {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
