"""Compares the outputs of mcompose and mergekit element by element.

    python -m examples.bench.agree FOLDER METHOD     # prints JSON

What cannot agree is counted separately. Ties: in bfloat16 many deltas share the magnitude on which the cut falls, and
which of them are kept is each tool's choice; elements with such a delta in any source are counted and left out. DARE:
the masks are drawn differently by design, so the share of elements that left the base, and the moments of the change,
are set side by side instead. mergekit computes deltas in its ``dtype``, usually bfloat16, where last digits and close
elections differ from mcompose's float32; with ``--peer-dtype float32`` only the order of additions is left to differ.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from examples.bench.recipes import METHODS, SOURCES


def tensors(*folders: Path) -> Iterator[list[torch.Tensor]]:
    """Yields the tensors of the same name in several checkpoints, one name at a time."""
    with ExitStack() as stack:
        places = []
        for folder in folders:
            files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
            places.append({name: file for file in files for name in file.keys()})  # noqa: SIM118 - no mapping
        if len({frozenset(place) for place in places}) > 1:
            raise ValueError(f"{' and '.join(map(str, folders))} contain tensors of different names.")
        for name in places[0]:
            yield [place[name].get_tensor(name) for place in places]


def steps(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Counts the bfloat16 steps between two tensors, element by element."""
    bits = [x.view(torch.int16).numpy().astype(np.int32) for x in (a, b)]
    ours, theirs = (np.where(x < 0, -(x & 0x7FFF), x) for x in bits)
    return np.abs(ours - theirs)


def on_the_cut(base: torch.Tensor, sources: list[torch.Tensor], density: float) -> np.ndarray:
    """Finds elements where a source's delta, in bfloat16, has exactly the smallest magnitude that is kept."""
    found = np.zeros(tuple(base.shape), bool)
    for source in sources:
        magnitude = (source - base).abs().float().numpy()
        kept = max(1, int(density * magnitude.size))
        found |= magnitude == np.partition(magnitude, magnitude.size - kept, axis=None)[magnitude.size - kept]
    return found


def elements(folder: Path, method: str) -> dict[str, float]:
    """Measures the shares of equal elements and of those one bfloat16 step apart, and the largest difference."""
    density = METHODS[method].get("density") if method == "ties" else None
    folders = [folder / f"{tool}-{method}" for tool in ("mcompose", "mergekit")]
    if density:
        folders += [folder / name for name in ("base", *SOURCES)]
    total = left_out = equal = near = 0
    largest = 0.0
    for ours, theirs, *origin in tensors(*folders):
        counted = ~on_the_cut(origin[0], origin[1:], float(str(density))) if density else np.ones(ours.shape, bool)
        apart = steps(ours, theirs)[counted]
        total += counted.size
        left_out += counted.size - apart.size
        equal += int(np.count_nonzero(apart == 0))
        near += int(np.count_nonzero(apart <= 1))
        largest = max(largest, float(np.abs((ours.float() - theirs.float()).numpy()[counted]).max(initial=0.0)))
    compared = max(total - left_out, 1)
    return {
        "left_out": left_out / total,
        "equal": equal / compared,
        "within_one_step": near / compared,
        "largest_difference": largest,
    }


def moments(folder: Path, method: str) -> dict[str, dict[str, float]]:
    """Measures each tool's change to the base: share of changed elements, mean, mean magnitude, deviation."""
    figures = {}
    for tool in ("mcompose", "mergekit"):
        total = changed = 0
        sums = np.zeros(3)
        for merged, base in tensors(folder / f"{tool}-{method}", folder / "base"):
            change = (merged.float() - base.float()).double()
            total += change.numel()
            changed += int(torch.count_nonzero(change))
            sums += [float(change.sum()), float(change.abs().sum()), float((change * change).sum())]
        mean, magnitude, square = (float(x) for x in sums / total)
        deviation = (square - mean * mean) ** 0.5
        figures[tool] = {"changed": changed / total, "mean": mean, "magnitude": magnitude, "deviation": deviation}
    return figures


def agree(folder: Path, method: str) -> dict[str, object]:
    """Compares the two outputs of one method."""
    if method == "dare_ties":
        return {"kind": "moments", **moments(folder, method)}
    return {"kind": "elements", **elements(folder, method)}


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps(agree(Path(sys.argv[1]), sys.argv[2])))
