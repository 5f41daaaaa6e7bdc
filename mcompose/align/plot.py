"""Plots the loss of a stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mcompose.whole_files import whole_file

__all__ = ["plot_losses", "read_losses"]


def read_losses(log: Path) -> list[tuple[int, float]]:
    """Reads step and loss of every line of a log."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def plot_losses(losses: list[tuple[int, float]], path: Path, *, title: str) -> bool:
    """Draws every step's loss and its running mean.

    Args:
        losses: Step and loss, in order.
        path: PNG file to write.
        title: Title of the plot.

    Returns:
        Whether the plot was written; False if matplotlib is not installed.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an optional library
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return False
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, values, color="0.7", linewidth=1, label="each step")
    window = max(1, len(values) // 20)
    if window > 1:
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], means, color="C0", label=f"mean of {window}")
        axes.legend()
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True
