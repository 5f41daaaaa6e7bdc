"""A merge of the 30B class without 30B weights: the cost of planning it, bounded memory, and the time to expect.

    python -m examples.bench.large
    python -m examples.bench.large --methods linear ties --layers 1 2

The checkpoints are sparse: real headers, and holes for data, which read as zeros and take no disk. Planning is
measured on whole models of 7B, 30B and 70B. Merging is measured on samples that hold a few of the 30B model's layers,
in its real shapes, with its real embeddings: their peak memory stands for that of the whole, where it does not grow
from the small sample to the large, and the time of the whole is EXTRAPOLATED along the line through the two. The time
holds no reading from disk. The data is zeros throughout: the work of ``linear`` does not depend on it, while for a
method that selects by magnitude it is an odd case (every element ties). Outputs are real, and deleted.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.bench.llama import Llama
from examples.bench.machine import machine, save
from examples.bench.recipes import METHODS, SOURCES, mcompose_command, merged
from examples.bench.sparse import build_sparse
from examples.bench.turn import Job, Turn, clear, take

FOLDER = Path("build/bench/large")
MODELS = {
    "7B": Llama(32, hidden=4096, intermediate=11008, key_value=4096, head=128, vocabulary=32000),
    "30B": Llama(60, hidden=6656, intermediate=17920, key_value=6656, head=128, vocabulary=32000),
    "70B": Llama(80, hidden=8192, intermediate=28672, key_value=1024, head=128, vocabulary=32000),
}
FIGURES = ("wall", "cpu", "peak", "anonymous")
SHARDS = {"7B": 3, "30B": 15, "70B": 30}


def checkpoints(folder: Path, model: Llama, *, shards: int) -> None:
    """Builds the base and its three fine-tunes."""
    for name in ("base", *SOURCES):
        build_sparse(folder / name, model, shards=shards)


def plan_turns(folder: Path, method: str, rounds: int) -> list[Turn]:
    """Measures the planning of whole models, all sizes in turn."""
    jobs = []
    for size, model in MODELS.items():
        checkpoints(folder / size, model, shards=SHARDS[size])
        script, _, recipe, *_ = mcompose_command(folder / size, method)
        headers = sorted((folder / size).glob("*/*.json"))
        jobs.append(Job(f"plan {size}", "mcompose", [script, "plan", recipe, "--json"], headers))
    return [take(job, number=number, settle=0.5) for number in range(rounds + 1) for job in jobs]


def merge_turns(folder: Path, method: str, samples: list[int], rounds: int) -> list[Turn]:
    """Measures merges of samples of the 30B model, in turn."""
    turns, jobs = [], []
    places = [folder / f"30B-{layers}-layers" for layers in samples]
    try:
        for layers, place in zip(samples, places, strict=True):
            checkpoints(place, replace(MODELS["30B"], layers=layers), shards=1)
            inputs = [place / name / "model-00001-of-00001.safetensors" for name in merged(method)]
            command, output = mcompose_command(place, method), place / f"mcompose-{method}"
            jobs.append(Job(f"{method} {layers} layers", "mcompose", command, inputs, output))
        for number in range(rounds + 1):
            for job in jobs:
                turns.append(take(job, number=number))
                clear(job)
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    return turns


def median(turns: list[Turn], label: str, figure: str) -> float:
    """Returns the median of one figure over the measured rounds."""
    return statistics.median(getattr(turn.cost, figure) for turn in turns if turn.label == label and turn.number)


def line_through(sizes: Sequence[float], figures: Sequence[float], at: float) -> float:
    """Returns the value at a size on the least-squares line through the samples."""
    slope, start = statistics.linear_regression(sizes, figures)
    return start + slope * at


def extrapolation(turns: list[Turn], method: str, samples: list[int]) -> dict[str, Any]:
    """Extrapolates from the samples to the whole 30B model."""
    whole = MODELS["30B"]
    measured = []
    for layers in samples:
        figures = {name: median(turns, f"{method} {layers} layers", name) for name in FIGURES}
        measured.append({"bytes": replace(whole, layers=layers).nbytes, **figures})
    sizes = [sample["bytes"] for sample in measured]
    expected = {
        name: line_through(sizes, [sample[name] for sample in measured], whole.nbytes) for name in ("wall", "cpu")
    }
    return {"bytes": whole.nbytes, **expected, "extrapolated": True, "samples": measured}


def report(turns: list[Turn], found: dict[str, dict[str, Any]]) -> str:
    """Formats all figures, and names those that were not measured."""
    lines = ["| plan of | GB | CPU s | wall s | peak MB |", "| --- | --- | --- | --- | --- |"]
    for size, model in MODELS.items():
        cpu, wall, peak = (median(turns, f"plan {size}", name) for name in ("cpu", "wall", "peak"))
        lines.append(f"| {size} | {model.nbytes / 1e9:.0f} | {cpu:.2f} | {wall:.2f} | {peak / 1e6:.0f} |")
    for method, of in found.items():
        for sample in of["samples"]:
            lines.append(
                f"- {method}, measured, sample of {sample['bytes'] / 1e9:.2f} GB: {sample['wall']:.2f} s, CPU"
                f" {sample['cpu']:.2f} s, peak MB {sample['peak'] / 1e6:.0f}, anonymous {sample['anonymous'] / 1e6:.0f}"
            )
        lines.append(
            f"- {method}, EXTRAPOLATED to the whole {of['bytes'] / 1e9:.0f} GB: {of['wall']:.0f} s, CPU"
            f" {of['cpu']:.0f} s, without the time to read the sources from disk"
        )
    return "\n".join(lines)


def main() -> None:
    """Plans whole models, merges samples, extrapolates."""
    parser = argparse.ArgumentParser(description="Planning 7B to 70B, and a 30B-class merge from samples.")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["linear"])
    parser.add_argument("--layers", nargs=2, type=int, default=[1, 3], help="layers of the two samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    found, folder = machine(), options.folder.resolve()
    turns = plan_turns(folder, options.methods[0], options.rounds)
    whole = {}
    for method in options.methods:
        turns += merge_turns(folder, method, options.layers, options.rounds)
        whole[method] = extrapolation(turns, method, options.layers)
    settings = {"rounds": options.rounds, "layers": options.layers, "data": "holes: zeros, no disk reads"}
    save(folder / "results.json", turns, machine=found, settings=settings, extrapolation=whole)
    print(report(turns, whole))
    print(f"\nsaved in {folder / 'results.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
