"""``lab report chimera``: the table over seeds, beside the paper's own, and its picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from mcompose.lab import LabFamily, Row, new_figure, table
from mcompose.pipeline.lab.chimera.recipes import CONCAT, MASKED, NAIVE, SINGLE
from mcompose.pipeline.lab.chimera.run import BASE, COMPARED, MEANS, ROUTES, Plan, chimera_run
from mcompose.pipeline.lab.table import LabReport

__all__ = ["PAPER", "PUBLISHED", "chimera_report", "markdown", "plot_chimera", "with_paper"]

PUBLISHED: Final = "paper"
PAPER: Final = {
    BASE: 0.570, NAIVE: 0.585, CONCAT: 0.594, MASKED: 0.613, "gscm 0.5": 0.604, "gscm 1.0": 0.562, SINGLE: 0.594,
}  # fmt: skip
"""MathVista testmini of the 4B model (arXiv:2412.05983, tables 11 and 14): one run each, and no lab task."""
_COLUMNS: Final = (*MEANS, "attention-share", PUBLISHED)
_COLOURS: Final = ("#d95f02", "#1b9e77", "#7570b3", "#666666")


def chimera_report(families: Iterable[LabFamily], folder: Path, *, plan: Plan | None = None) -> LabReport:
    """Trains and measures all variants over several seeds.

    Args:
        families: One a seed.
        folder: Where the picture goes.
        plan: What to do; None for the report's own.

    Returns:
        The table.
    """
    plan = plan or Plan()
    runs, names = [], []
    for family in families:
        names.append(family.name)
        runs.append(chimera_run(family, plan))
    rows = with_paper(table(runs))
    plot = folder / "chimera.png"
    plot_chimera(rows, plot, title=f"chimera, {names[0]}: {len(runs)} seed{'s' * (len(runs) > 1)}")
    return LabReport("chimera", rows, plot, _COLUMNS)


def with_paper(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Adds the paper's own figure to each variant that it has, as the metric ``paper``."""
    made: list[Row] = []
    for number, row in enumerate(rows):
        made.append(row)
        if row.variant in PAPER and (number + 1 == len(rows) or rows[number + 1].variant != row.variant):
            made.append(Row(row.variant, PUBLISHED, PAPER[row.variant], 0.0, 1))
    return tuple(made)


def markdown(rows: Sequence[Row], metrics: Sequence[str] = (*MEANS, PUBLISHED)) -> str:
    """The table as Markdown, in per cent; differences have a sign.

    Args:
        rows: The table.
        metrics: Columns from left to right.
    """
    known = {(row.variant, row.metric): row for row in rows}
    lines = [f"| variant | {' | '.join(metrics)} |", "| --- " * (len(metrics) + 1) + "|"]
    for variant in dict.fromkeys(row.variant for row in rows):
        own = [known.get((variant, metric)) for metric in metrics]
        if any(own):
            lines.append(f"| {variant} | {' | '.join(_cell(row) for row in own)} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    sign = "+" if " - " in row.variant else ""
    return f"{100 * row.mean:{sign}.1f}" + (f" ± {100 * row.std:.1f}" if row.n > 1 else "")


def plot_chimera(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Draws accuracy by domain, differences on the same seed, attention, and the router's confusion.

    Args:
        rows: The table.
        path: PNG or any other format that matplotlib writes.
        title: Above everything.

    Raises:
        RequestError: matplotlib is not installed.
    """
    known = {(row.variant, row.metric): row for row in rows}
    figure = new_figure((15, 8.5))
    (scores, gaps), (attention, router) = figure.subplots(2, 2, width_ratios=[1.5, 1])
    _draw_scores(scores, known)
    _draw_gaps(gaps, known)
    _draw_attention(attention, known)
    _draw_router(router, known)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_scores(axes: Any, known: dict[tuple[str, str], Row]) -> None:
    forced = [f"{MASKED}, {route}" for route in ROUTES]
    names = [name for name in (*PAPER, *forced) if (name, "all") in known]
    groups = [metric for metric in MEANS if any((name, metric) in known for name in names)]
    width = 0.86 / max(1, len(names))
    for number, name in enumerate(names):
        own = [(place, known[name, metric]) for place, metric in enumerate(groups) if (name, metric) in known]
        axes.bar(
            [place + (number - (len(names) - 1) / 2) * width for place, _ in own],
            [100 * row.mean for _, row in own],
            width,
            yerr=[100 * row.std for _, row in own],
            label=name,
            color=f"C{number}" if name in PAPER else "0.45",
            alpha=1 if name in PAPER else 1 - 0.28 * (number - len(names) + len(forced)),
            error_kw={"linewidth": 1},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=7, frameon=False, ncols=2)
    _plain(axes, "accuracy", grid="y")


def _draw_gaps(axes: Any, known: dict[tuple[str, str], Row]) -> None:
    names = [f"{one} - {other}" for one, other in COMPARED if (f"{one} - {other}", "special") in known]
    if not names:
        axes.set_axis_off()
        return
    for shift, metric, colour in ((-0.15, "special", _COLOURS[0]), (0.15, "general", _COLOURS[1])):
        own = [(place, known[name, metric]) for place, name in enumerate(names) if (name, metric) in known]
        axes.errorbar(
            [100 * row.mean for _, row in own],
            [place + shift for place, _ in own],
            xerr=[100 * row.std for _, row in own],
            fmt="o",
            markersize=5,
            linewidth=1,
            color=colour,
            label={"special": "domains with an expert", "general": "general pictures"}[metric],
        )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -1.4)  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    _plain(axes, "difference on the same seed, points", grid="x")


def _draw_attention(axes: Any, known: dict[tuple[str, str], Row]) -> None:
    names = [name for name in PAPER if (name, "attention-expert") in known]
    if not names:
        axes.set_axis_off()
        return
    for shift, metric, colour in ((-0.2, "attention-expert", _COLOURS[2]), (0.2, "attention-general", _COLOURS[3])):
        own = [known[name, metric] for name in names]
        axes.bar(
            [place + shift for place in range(len(names))],
            [100 * row.mean for row in own],
            0.38,
            yerr=[100 * row.std for row in own],
            color=colour,
            label=f"on {metric.removeprefix('attention-')} tokens",
            error_kw={"linewidth": 1},
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("%")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    _plain(axes, "attention of answers", grid="y")


def _draw_router(axes: Any, known: dict[tuple[str, str], Row]) -> None:
    pairs = [metric.split(" to ") for variant, metric in known if variant == "router" and " to " in metric]
    names = list(dict.fromkeys(label for label, _ in pairs))
    shares = [[100 * known["router", f"{label} to {name}"].mean for name in names] for label in names]
    if not shares:
        axes.set_axis_off()
        return
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for down, row in enumerate(shares):
        for across, share in enumerate(row):
            axes.text(across, down, f"{share:.1f}", ha="center", va="center", color="white" if share > 50 else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("router")
    axes.set_ylabel("picture")
    axes.set_title("router, % of a domain's pictures", fontsize=10)


def _plain(axes: Any, title: str, *, grid: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
