"""Cost by the size of the checkpoints and by their number: time should grow linearly, memory not at all.

    python -m examples.bench.scaling
    python -m examples.bench.scaling --sizes 0.25 0.5 --sources 2 4 --rounds 1

mcompose alone, with ``cp`` of the output's bytes beside it. Sizes are measured with three sources; checkpoints that
were not there before are deleted after their turn (4 GB takes 16 GB of disk, and as much page cache to be warm: the
share of inputs found in it is saved with every run). Numbers of sources are measured at one size; sources beyond the
third are hard links to the first three under other names. Writes ``scaling.json`` and ``scaling.png``.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.bench.llama import of_size
from examples.bench.machine import machine, save
from examples.bench.measure import run
from examples.bench.recipes import METHODS, SOURCES, mcompose_command, merged
from examples.bench.turn import Job, Turn, clear, copy_jobs, take

FOLDER = Path("build/bench")
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def linked(folder: Path, count: int) -> list[str]:
    """Returns the names of the given number of sources; those beyond the third are hard links."""
    for k, name in enumerate(NAMES[len(SOURCES) : count]):
        (folder / name).mkdir(exist_ok=True)
        for file in (folder / NAMES[k % len(SOURCES)]).iterdir():
            if not (folder / name / file.name).exists():
                os.link(file, folder / name / file.name)
    return list(NAMES[:count])


def jobs(folder: Path, methods: list[str], count: int, label: str) -> list[Job]:
    """Makes the jobs of one point of the curves: ``cp``, and every method."""
    sources = linked(folder, count)
    wanted = [copy_jobs(label, [folder / "a" / "model.safetensors"], output=folder / "cp")[0]]
    for method in methods:
        inputs = [folder / name / "model.safetensors" for name in merged(method, sources)]
        command = mcompose_command(folder, method, sources)
        wanted.append(Job(label, method, command, inputs, folder / f"mcompose-{method}"))
    return wanted


def measure(wanted: list[Job], number: int, *, settle: float) -> list[Turn]:
    """Runs one round of one point."""
    turns = []
    for job in wanted:
        turns.append(take(job, number=number, settle=settle))
        clear(job)
    return turns


@contextmanager
def checkpoints(folder: Path, gb: float) -> Iterator[Path]:
    """Builds checkpoints of a size, and deletes them afterwards unless they existed before."""
    place = (folder / of_size(gb).name).resolve()
    kept = place.exists()
    try:
        run([sys.executable, "-m", "examples.bench.build", str(place), str(gb)])
        yield place
    finally:
        for unwanted in [place / name for name in NAMES[len(SOURCES) :]] if kept else [place]:
            shutil.rmtree(unwanted, ignore_errors=True)


def by_size(options: argparse.Namespace) -> list[Turn]:
    """Measures the curve over sizes, with three sources; one size after the other, since all may not fit the disk."""
    turns = []
    for gb in options.sizes:
        with checkpoints(options.folder, gb) as folder:
            for number in range(options.rounds + 1):
                wanted = jobs(folder, options.methods, 3, f"{of_size(gb).nbytes / 1e9:.3f} GB")
                turns += measure(wanted, number, settle=options.settle)
    return turns


def by_sources(options: argparse.Namespace) -> list[Turn]:
    """Measures the curve over numbers of sources, at one size; all points in every round."""
    turns = []
    with checkpoints(options.folder, options.gb) as folder:
        for number in range(options.rounds + 1):
            for count in options.sources:
                wanted = jobs(folder, options.methods, count, f"{count} sources")
                turns += measure(wanted, number, settle=options.settle)
    return turns


def main() -> None:
    """Measures both curves, saves and draws them."""
    parser = argparse.ArgumentParser(description="Cost of a merge against size and number of sources.")
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.25, 0.5, 1.0, 2.0, 4.0], help="GB per checkpoint")
    parser.add_argument("--sources", nargs="+", type=int, choices=range(2, 9), default=list(range(2, 9)))
    parser.add_argument("--gb", type=float, default=0.5, help="size in the curve over sources")
    methods = [name for name in METHODS if name != "slerp"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=["linear", "ties"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settle", type=float, default=3.0, help="seconds of pause before every run")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    found = machine()
    options.folder.mkdir(parents=True, exist_ok=True)
    turns = by_size(options) + by_sources(options)
    settings = {name: value for name, value in vars(options).items() if name != "folder"}
    path = options.folder / "scaling.json"
    save(path, turns, machine=found, settings=settings)
    run([sys.executable, "-m", "examples.bench.plot", str(path)])
    print(f"saved in {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
