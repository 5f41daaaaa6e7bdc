"""Methods on singular vectors beside the formulas of their authors' code, on one tensor of a layer.

    python -m examples.bench.singular --rows 4096 --columns 4096 --sources 2

Both get the same cores: the authors' formula, in torch and float32, as many threads; ours, as the engine does it, as
many tensors at a time with one thread each. The time is that of one tensor; the error is against float64.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from mcompose.methods import merge_tensors

Tensors = list[torch.Tensor]


def tsv(deltas: Tensors) -> torch.Tensor:
    """TSV-Merge by whole decompositions: of every source, and of all their vectors side by side."""
    count = min(deltas[0].shape) // len(deltas)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = torch.cat([u[:, :count] for u, _, _ in parts], dim=1)
    right = torch.cat([v[:count] for _, _, v in parts])
    lengths = torch.cat([s[:count] for _, s, _ in parts])
    left_u, _, left_v = torch.linalg.svd(left, full_matrices=False)
    right_u, _, right_v = torch.linalg.svd(right, full_matrices=False)
    return torch.linalg.multi_dot([left_u, left_v, torch.diag(lengths), right_u, right_v])


def iso_c(deltas: Tensors) -> torch.Tensor:
    """Iso-C by a whole decomposition of the sum."""
    u, s, v = torch.linalg.svd(torch.stack(deltas).sum(0), full_matrices=False)
    return s.mean() * (u @ v)


def swudi(deltas: Tensors) -> torch.Tensor:
    """SWUDI (300, 0.65) by the eigenvectors of all inputs."""
    curvature: Any = 0.0
    wanted: Any = 0.0
    for delta in deltas:
        inputs = delta.T @ delta / delta.square().sum()
        curvature, wanted = curvature + inputs, wanted + delta @ inputs
    values, vectors = torch.linalg.eigh(curvature)
    values = values.clamp(min=1e-8)
    shares = 1 - torch.exp(-values * 300)
    shares[: len(values) - max(1, int(len(values) * 0.65 + 0.999))] = 0
    start = torch.stack(deltas).sum(0)
    return start - start @ vectors * shares @ vectors.T + wanted @ vectors * (shares / values) @ vectors.T


METHODS: dict[str, Callable[[Tensors], torch.Tensor]] = {"tsv": tsv, "iso-c": iso_c, "swudi": swudi}


def measure(name: str, deltas: list[np.ndarray], cores: int) -> tuple[float, float, float]:
    """Measures one method.

    Args:
        name: Name of the method.
        deltas: Float32 matrices of one shape.
        cores: Threads of the authors' formula, and number of tensors that ours merges at a time.

    Returns:
        Seconds a tensor of theirs and of ours, and our largest error as a share of the largest value of float64.
    """
    torch.set_num_threads(cores)
    tensors = [torch.from_numpy(delta) for delta in deltas]
    begun = time.perf_counter()
    METHODS[name](tensors)
    theirs = time.perf_counter() - begun
    base = np.zeros_like(deltas[0])
    begun = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        results = list(pool.map(lambda _: merge_tensors(name, deltas, base=base), range(cores)))
    ours = (time.perf_counter() - begun) / cores
    exact = METHODS[name]([tensor.double() for tensor in tensors]).numpy()
    return theirs, ours, float(np.abs(results[0] - exact).max() / np.abs(exact).max())


def main() -> None:
    """Prints a row for each method and number of sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{chosen.rows} x {chosen.columns}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'method':<8}{'sources':>8}{'theirs':>10}{'ours':>10}{'ratio':>8}{'error':>10}")
    generator = np.random.default_rng(0)
    for many in chosen.sources:
        shape = (chosen.rows, chosen.columns)
        deltas = [generator.standard_normal(shape, np.float32) * np.float32(0.002) for _ in range(many)]
        for name in chosen.methods:
            theirs, ours, error = measure(name, deltas, cores)
            print(f"{name:<8}{many:>8}{theirs:>9.2f}s{ours:>9.2f}s{theirs / ours:>8.2f}{error:>10.1e}")


if __name__ == "__main__":
    main()
