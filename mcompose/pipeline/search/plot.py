"""A search as a picture: score by trial with the best so far, and the score over one or two coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.whole_files import whole_file

__all__ = ["Dot", "plot_search"]

COLOUR, BEST, FAILED = "#4292c6", "#d95f02", "0.6"


@dataclass(frozen=True)
class Dot:
    """One trial in the picture.

    Args:
        number: Number of the trial.
        score: None when there is none.
        place: Coordinates, in the order of the labels.
        failed: Whether its merge could not be used.
        authored: The recipe's own settings.
        best: The one that was chosen.
    """

    number: int
    score: float | None
    place: tuple[float, ...]
    failed: bool = False
    authored: bool = False
    best: bool = False


def plot_search(dots: Sequence[Dot], labels: Sequence[str], path: Path, *, title: str, measure: str = "score") -> bool:
    """Draws a search.

    Args:
        dots: Trials, in the order of their numbers.
        labels: Names of the coordinates; one gives a curve, two a map, others none.
        path: PNG to write.
        title: Above the picture.
        measure: Name of the score, for the axis.

    Returns:
        False where matplotlib is not installed, or nothing was scored.

    Raises:
        StorageError: The disk refused.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an optional library
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return False
    scored = [dot for dot in dots if dot.score is not None]
    if not scored:
        return False
    columns = 2 if len(labels) in {1, 2} else 1
    figure = Figure(figsize=(6.2 * columns, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _history(axes[0], dots, scored, measure=measure)
    if columns == 2:
        (_curve if len(labels) == 1 else _map)(axes[1], dots, scored, labels=labels, measure=measure)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(linewidth=0.4, alpha=0.6)
        one.set_axisbelow(True)
    figure.suptitle(title)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize="small")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True


def _history(axes: Any, dots: Sequence[Dot], scored: Sequence[Dot], *, measure: str) -> None:
    """Draws every trial, and the best so far."""
    so_far, best = [], float("-inf")
    for dot in scored:
        best = max(best, dot.score if dot.score is not None else best)
        so_far.append(best)
    numbers = [dot.number for dot in scored]
    axes.step(
        [*numbers, dots[-1].number], [*so_far, best], where="post", color=BEST, linewidth=1.2, label="best so far"
    )
    axes.plot(numbers, [dot.score for dot in scored], "o", color=COLOUR, markersize=4.5, label="trial")
    _mark(axes, scored, lambda dot: (dot.number, dot.score))
    _failures(axes, dots, lambda dot: dot.number, scored)
    axes.set(xlabel="trial", ylabel=measure)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _curve(axes: Any, dots: Sequence[Dot], scored: Sequence[Dot], *, labels: Sequence[str], measure: str) -> None:
    line = sorted((dot.place[0], dot.score) for dot in scored)
    axes.plot([x for x, _ in line], [y for _, y in line], "-", color=COLOUR, linewidth=0.8, alpha=0.5)
    axes.plot([x for x, _ in line], [y for _, y in line], "o", color=COLOUR, markersize=4.5)
    _mark(axes, scored, lambda dot: (dot.place[0], dot.score))
    _failures(axes, dots, lambda dot: dot.place[0], scored)
    axes.set(xlabel=labels[0], ylabel=measure)


def _map(axes: Any, dots: Sequence[Dot], scored: Sequence[Dot], *, labels: Sequence[str], measure: str) -> None:
    points = axes.scatter(
        [dot.place[0] for dot in scored],
        [dot.place[1] for dot in scored],
        c=[dot.score for dot in scored],
        cmap="viridis",
        s=42,
        zorder=2,
    )
    axes.figure.colorbar(points, ax=axes, label=measure)
    _mark(axes, scored, lambda dot: dot.place)
    failed = [dot for dot in dots if dot.failed]
    if failed:
        axes.plot([d.place[0] for d in failed], [d.place[1] for d in failed], "x", color=FAILED, label="failed")
    axes.set(xlabel=labels[0], ylabel=labels[1])


def _mark(axes: Any, scored: Sequence[Dot], place: Any) -> None:
    """Rings the chosen trial, and the recipe as it was."""
    for dot in scored:
        if dot.best:
            axes.plot(*place(dot), "o", markersize=11, markerfacecolor="none", markeredgecolor=BEST, label="chosen")
        if dot.authored:
            axes.plot(
                *place(dot),
                "s",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor="0.3",
                label="the recipe as it was",
            )


def _failures(axes: Any, dots: Sequence[Dot], place: Any, scored: Sequence[Dot]) -> None:
    failed = [dot for dot in dots if dot.failed]
    if failed:
        floor = min(dot.score for dot in scored if dot.score is not None)
        axes.plot([place(dot) for dot in failed], [floor] * len(failed), "x", color=FAILED, label="failed")
