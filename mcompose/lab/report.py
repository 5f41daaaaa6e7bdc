"""The lab's tables: scores of donors, text ceiling and compositions over seeds, with mean and standard deviation.

The lab does not compose or evaluate (other rooms do); the caller passes a function that evaluates, and the folders of
the compositions.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from mcompose.errors import RequestError
from mcompose.lab.family import LabFamily

__all__ = [
    "Evaluator",
    "Row",
    "Scores",
    "family_scores",
    "new_figure",
    "plot_rows",
    "table",
    "table_json",
    "wide_table",
]

Scores = Mapping[str, float]


class Evaluator(Protocol):
    """Evaluates a checkpoint on tasks."""

    def __call__(self, checkpoint: Path, tasks: list[Path], *, leave_out: bool) -> Sequence[Mapping[str, Any]]:
        """Scores a checkpoint; rows hold ``task``, ``metric`` and ``value``."""
        ...


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        variant: ``donor:<name>``, ``text-ceiling``, or a composition's method.
        metric: A task, or a mean over tasks (``joint-mean``, ``single-mean``, ``text-mean``). Names of tasks about
            several media contain ``joint``.
        mean: Mean over seeds, 0 to 1.
        std: Sample standard deviation over seeds; 0 with one seed.
        n: Number of seeds.
    """

    variant: str
    metric: str
    mean: float
    std: float
    n: int


def family_scores(
    family: LabFamily,
    *,
    evaluate: Evaluator,
    composed: Mapping[str, Path],
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluates one family: each donor alone, the base on text, and compositions.

    A donor alone answers the single tasks of its modality, the text tasks, and the joint tasks with the inputs of other
    modalities left out. The text ceiling is the base on the joint questions with number words in place of media.

    Args:
        family: The family.
        evaluate: Function that evaluates a checkpoint.
        composed: Variant -> folder of a composition of all donors.
        progress: Called with each variant before it is evaluated.

    Returns:
        Variant -> metric -> value.
    """
    joint = _named(family, "joint-")
    text = _named(family, "text-")
    single = [path for name, path in family.tasks.items() if not name.startswith(("joint-", "text-"))]
    work: list[tuple[str, Path, list[Path]]] = [("text-ceiling", family.base, text)]
    for name, folder in family.donors.items():
        own = [path for path in single if path.stem.startswith(f"{name}-")]
        work.append((f"donor:{name}", folder, [*own, *joint, *text]))
    work += [(variant, folder, [*single, *joint, *text]) for variant, folder in composed.items()]
    scores = {}
    for variant, folder, tasks in work:
        if progress:
            progress(variant)
        rows = evaluate(folder, tasks, leave_out=variant.startswith("donor:"))
        scores[variant] = _with_means(variant, rows)
    return scores


def _named(family: LabFamily, start: str) -> list[Path]:
    return [path for name, path in family.tasks.items() if name.startswith(start)]


def _with_means(variant: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for row in rows:
        name = str(row["task"])
        if variant == "text-ceiling" and _is_joint(name):
            values[name.replace("text-", "joint-", 1)] = float(row["value"])
        suffix = "_seen" if str(row["metric"]).endswith("_seen") else ""
        values[name + suffix] = float(row["value"])
    kinds = {"joint-mean": [], "text-mean": [], "single-mean": []}
    for name, value in values.items():
        if not name.endswith("_seen"):
            kinds[f"{name.partition('-')[0]}-mean" if name.startswith(("joint-", "text-")) else "single-mean"].append(
                value
            )
    return values | {name: statistics.fmean(group) for name, group in kinds.items() if group}


def _is_joint(name: str) -> bool:
    return name.removeprefix("text-").partition("-")[0] in {"sum", "same", "larger", "which", "common"}


def table(runs: Sequence[Mapping[str, Scores]]) -> list[Row]:
    """Combines the scores of several seeds into rows with mean and standard deviation.

    Args:
        runs: Scores of each seed: variant -> metric -> value. Every seed has the same variants and metrics.

    Returns:
        Rows in the order of the first run.

    Raises:
        RequestError: There are no runs, or the runs differ in their variants or metrics.
    """
    if not runs:
        raise RequestError("A table needs the scores of at least one seed.")
    shape = {variant: list(scores) for variant, scores in runs[0].items()}
    if any({v: list(s) for v, s in run.items()} != shape for run in runs[1:]):
        raise RequestError("The seeds of a table must have the same variants and metrics.")
    rows = []
    for variant, metrics in shape.items():
        for metric in metrics:
            values = [run[variant][metric] for run in runs]
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(Row(variant, metric, statistics.fmean(values), std, len(values)))
    return rows


def table_json(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what ``mcompose lab report --json`` prints.

    Args:
        name: Name of the report.
        rows: Rows of the table.

    Returns:
        ``{"name", "rows": [{"variant", "metric", "mean", "std", "n"}]}``.
    """
    return {"name": name, "rows": [asdict(row) for row in rows]}


def wide_table(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Arranges rows as one line per variant and one column per metric: ``0.812 +- 0.020``, or an empty cell.

    Args:
        rows: Rows of the table.
        metrics: Metrics of the columns, from left to right.

    Returns:
        Header and lines; variants that have none of the metrics are left out.
    """
    known = {(row.variant, row.metric): row for row in rows}
    lines = []
    for variant in dict.fromkeys(row.variant for row in rows):
        cells = [known.get((variant, metric)) for metric in metrics]
        counts = [str(row.n) for row in cells if row is not None]
        if counts:
            lines.append((variant, *map(_cell, cells), counts[0]))
    return ("variant", *metrics, "n"), lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if abs(row.mean) >= 1000:
        return f"{row.mean:.0f}"
    return f"{row.mean:.3f}" + (f" +- {row.std:.3f}" if row.n > 1 else "")


def new_figure(size: tuple[float, float]) -> Any:
    """Creates an empty matplotlib figure.

    Args:
        size: Width and height in inches.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise RequestError("A plot needs matplotlib.", hint="Install it: pip install 'mcompose[lab]'.") from error
    return Figure(figsize=size, layout="constrained")


def plot_rows(rows: Sequence[Row], path: Path, *, metrics: Sequence[str] = (), title: str = "") -> None:
    """Draws bars: one group per metric, one bar per variant, with error bars of one standard deviation.

    Args:
        rows: Rows of the table.
        path: File to write: PNG or any other format that matplotlib writes.
        metrics: Metrics of the groups from left to right; by default every joint task.
        title: Title above the bars.

    Raises:
        RequestError: matplotlib is not installed.
    """
    groups = list(metrics) or _joint_metrics(rows)
    variants = list(dict.fromkeys(row.variant for row in rows))
    known = {(row.variant, row.metric): row for row in rows}
    figure = new_figure((1.5 + 1.6 * len(groups), 4.2))
    axes = figure.subplots()
    width = 0.85 / len(variants)
    for index, variant in enumerate(variants):
        bars = [(place, known[variant, metric]) for place, metric in enumerate(groups) if (variant, metric) in known]
        axes.bar(
            [place + (index - (len(variants) - 1) / 2) * width for place, _ in bars],
            [row.mean for _, row in bars],
            width,
            yerr=[row.std for _, row in bars],
            label=variant,
            color=_colours(variants)[variant],
            error_kw={"linewidth": 1},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title)
    figure.legend(loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _joint_metrics(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(row.metric for row in rows if row.metric.startswith("joint-"))
    return [name for name in names if not name.endswith(("_seen", "-mean"))] + ["joint-mean"]


def _colours(variants: Sequence[str]) -> dict[str, str]:
    donors = itertools.cycle(("#c6dbef", "#9ecae1", "#6baed6", "#4292c6"))
    methods = itertools.cycle(("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d"))
    return {
        variant: "0.75" if variant == "text-ceiling" else next(donors if variant.startswith("donor:") else methods)
        for variant in variants
    }
