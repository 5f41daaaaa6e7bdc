"""The plot of the composition report: one line per variant, with and without search, and the margin of one variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcompose.lab.composition import DIFFERENCE
from mcompose.lab.report import Row, new_figure

__all__ = ["SEARCHED", "plot_composition"]

_PANELS = {
    "retention-mean": "kept of donors",
    "retention-text": "kept of text",
    "joint-2": "joint, 2 media",
    "joint-3": "joint, 3 media",
    "joint-4": "joint, 4 media",
}
SEARCHED = "+search"
_MARGIN_OF = ("joint-common-", "joint-own-")
_COUNTS = (2, 3, 4)


def plot_composition(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Draws one panel per metric, and beside them the margin of one variant over another by the number of media.

    Args:
        rows: Rows of the table.
        path: File to write: PNG or any other format that matplotlib writes.
        title: Title above the panels.

    Raises:
        RequestError: matplotlib is not installed.
    """
    known = {(row.variant, row.metric): row for row in rows}
    lines = [name for name in dict.fromkeys(row.variant for row in rows) if _is_line(name)]
    drawn = {metric: label for metric, label in _PANELS.items() if any(name == metric for _, name in known)}
    figure = new_figure((16, 1.8 + 0.33 * len(lines)))
    panels = figure.subplots(1, len(drawn) + 1, squeeze=False, width_ratios=[*[1] * len(drawn), 1.6])[0]
    for axes, (metric, label) in zip(panels, drawn.items(), strict=False):
        _draw_panel(axes, metric, lines, known)
        axes.set_title(label, fontsize=10)
        axes.set_yticks(range(len(lines)), lines if axes is panels[0] else [""] * len(lines))
        axes.set_ylim(len(lines) - 0.5, -0.5)  # the same in all panels; first line on top
    if any(variant.endswith(SEARCHED) for variant, _ in known):
        panels[0].legend(loc="lower left", fontsize=8, frameon=False)
    _draw_margins(panels[-1], known)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _is_line(variant: str) -> bool:
    return DIFFERENCE not in variant and not variant.endswith(SEARCHED)


def _draw_panel(axes: Any, metric: str, lines: Sequence[str], known: dict[tuple[str, str], Row]) -> None:
    for suffix, shift, colour, label in (("", -0.12, "#1b6ca8", "as it is"), (SEARCHED, 0.12, "#d95f02", "searched")):
        points = [
            (place, known[name + suffix, metric])
            for place, name in enumerate(lines)
            if (name + suffix, metric) in known
        ]
        if not points:
            continue
        axes.errorbar(
            [row.mean for _, row in points],
            [place + shift for place, _ in points],
            xerr=[row.std for _, row in points],
            fmt="o",
            markersize=4,
            linewidth=1,
            color=colour,
            label=label,
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)


def _draw_margins(axes: Any, known: dict[tuple[str, str], Row]) -> None:
    """Draws a line per pair of variants, for the composition of all donors and for that of only those concerned."""
    pairs = [name for name in dict.fromkeys(variant for variant, _ in known) if DIFFERENCE in name]
    for number, pair in enumerate(pairs):
        for prefix in _MARGIN_OF:
            found = {count: row for count in _COUNTS if (row := known.get((pair, f"{prefix}{count}"))) is not None}
            if len(found) > 1:
                axes.errorbar(
                    [count + 0.03 * number for count in found],
                    [row.mean for row in found.values()],
                    yerr=[row.std for row in found.values()],
                    linestyle="-" if prefix == _MARGIN_OF[0] else "--",
                    marker="o",
                    markersize=3,
                    linewidth=1,
                    color=f"C{number}",
                    label=pair + (" (own donors)" if prefix == _MARGIN_OF[1] else ""),
                )
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_xticks([n for n in _COUNTS if any(metric == f"{_MARGIN_OF[0]}{n}" for _, metric in known)])
    axes.set_xlabel("media in a commonality question")
    axes.set_title("margin", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=7, frameon=False)
