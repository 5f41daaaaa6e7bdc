"""Draws what ``examples.bench.scaling`` measured.

python -m examples.bench.plot build/bench/scaling.json
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"cp": "0.55", "linear": "tab:blue", "ties": "tab:orange", "task_arithmetic": "tab:green"}
GOAL_MB = 400


def curves(results: dict[str, Any], unit: str, figure: str) -> dict[str, dict[float, list[float]]]:
    """Returns tool -> abscissa -> figure of every measured round.

    Args:
        results: Contents of the results file.
        unit: ``GB`` or ``sources``, the unit of the curve's abscissa.
        figure: ``wall``, ``peak`` or ``anonymous``.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for run in results["runs"]:
        at, of = run["label"].split()
        if of == unit and run["number"]:
            found.setdefault(run["tool"], {}).setdefault(float(at), []).append(run[figure])
    return found


def straightness(at: list[float], figures: list[float]) -> float:
    """Returns R2 of the straight line through the points: 1 for a perfect line."""
    return statistics.correlation(at, figures) ** 2 if len(at) > 2 else 1.0


def draw_time(axes: Axes, curve: dict[str, dict[float, list[float]]], each: str) -> None:
    """Draws medians with their range, and the line through them."""
    for tool, points in curve.items():
        at, middle = list(points), [statistics.median(walls) for walls in points.values()]
        below = [m - min(walls) for m, walls in zip(middle, points.values(), strict=True)]
        above = [max(walls) - m for m, walls in zip(middle, points.values(), strict=True)]
        colour = COLOURS.get(tool)
        slope, start = statistics.linear_regression(at, middle)
        line = f"{start:.1f} s {slope:+.2f} s per {each}, R² {straightness(at, middle):.3f}"
        axes.errorbar(at, middle, yerr=[below, above], fmt="o", capsize=3, color=colour, label=f"{tool}: {line}")
        axes.plot([0, max(at)], [start, start + slope * max(at)], "--", linewidth=1, color=colour)
    axes.set_ylabel("wall time, s")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(fontsize=9, loc="upper left")


def draw_memory(axes: Axes, results: dict[str, Any], unit: str) -> None:
    """Draws the highest peak of all rounds, total and anonymous, beside the goal."""
    for figure, style, name in (("peak", "-o", "total"), ("anonymous", ":s", "anonymous")):
        for tool, points in curves(results, unit, figure).items():
            if tool != "cp":
                highest = [max(values) / 1e6 for values in points.values()]
                axes.plot(list(points), highest, style, color=COLOURS.get(tool), label=f"{tool}, {name}")
    axes.axhline(GOAL_MB, color="tab:red", linewidth=1, label=f"goal: {GOAL_MB} MB")
    axes.set_ylabel("peak memory, MB")
    axes.set_ylim(0, max(axes.get_ylim()[1], GOAL_MB) * 1.4)
    axes.set_xlim(left=0)
    axes.legend(fontsize=9, loc="upper left", ncols=3)


def draw(path: Path) -> None:
    """Writes the plot beside the results file."""
    results = json.loads(path.read_text())
    figure, grid = plt.subplots(2, 2, figsize=(12, 8), sharex="col", layout="constrained")
    for column, unit in enumerate(("GB", "sources")):
        draw_time(grid[0][column], curves(results, unit, "wall"), unit.removesuffix("s"))
        draw_memory(grid[1][column], results, unit)
    grid[0][0].set_title("three sources")
    grid[0][1].set_title(f"{results['settings']['gb']:g} GB per checkpoint")
    grid[1][0].set_xlabel("GB per checkpoint")
    grid[1][1].set_xlabel("sources")
    for axes in grid.flat:
        axes.grid(visible=True, alpha=0.3)
    machine = results["machine"]
    note = f"{machine['processor']}, {machine['cores']} cores, warm cache, load before {machine['load_before'][0]:.1f}"
    figure.suptitle(f"Cost of a merge: median and range of rounds, n = {results['settings']['rounds']}\n{note}")
    figure.savefig(path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
