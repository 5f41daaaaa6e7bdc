"""Plots the loss of a stage, and of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcompose.align.task_losses import LOSS
from mcompose.whole_files import whole_file

__all__ = ["plot_losses", "read_losses", "read_task_losses", "summary"]

_WINDOWS = 20  # a running mean is over this part of all steps


def read_losses(log: Path) -> list[tuple[int, float]]:
    """Reads step and loss of every line of a log."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def read_task_losses(log: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads step and loss of every task, in the order in which tasks come; empty where the log has none."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name in (name for name in row if name.startswith(LOSS)):
            found.setdefault(name.removeprefix(LOSS), []).append((row["step"], row[name]))
    return found


def summary(losses: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Returns the first and the last loss, and the mean of the last tenth."""
    values = [loss for _, loss in losses]
    tail = values[-max(1, len(values) // 10) :]
    return {"first": values[0], "last": values[-1], "mean_of_last_tenth": sum(tail) / len(tail)}


def plot_losses(
    losses: Sequence[tuple[int, float]],
    path: Path,
    *,
    title: str,
    tasks: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> bool:
    """Draws every step's loss and its running mean; with tasks, the running mean of each.

    Args:
        losses: Step and loss, in order.
        path: PNG file to write.
        title: Title of the plot.
        tasks: Task to step and loss.

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
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*_columns(losses), color="0.7", linewidth=1, label="each step")
    window = _draw_mean(axes, losses, label="mean of {}", color="0.2" if tasks else "C0")
    for number, (task, points) in enumerate((tasks or {}).items()):
        _draw_mean(axes, points, label=task, color=f"C{number % 10}", always=True)
    if window > 1 or tasks:
        axes.legend()
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True


def _draw_mean(axes: Any, points: Sequence[tuple[int, float]], *, label: str, color: str, always: bool = False) -> int:
    """Draws a running mean, unless it would be each step's value; returns the steps of a mean."""
    steps, values = _columns(points)
    window = max(1, len(values) // _WINDOWS)
    if window > 1 or always:
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], means, color=color, label=label.replace("{}", str(window)))
    return window


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [loss for _, loss in points]
