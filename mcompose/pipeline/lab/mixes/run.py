"""``lab report sphinx`` and ``smola``: variants composed, aligned in two stages, and asked, over several seeds.

What was trained or answered once is not done again. Beside right answers a row has the tokens of a picture, the trained
parameters of stage 2, and the answers on general pictures, which tell what a variant has lost.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.lab import LabFamily, Row, new_figure, table
from mcompose.pipeline.align import AlignOptions, align
from mcompose.pipeline.lab.chimera.run import domain_means
from mcompose.pipeline.lab.mixes.variants import SMOLA, SPHINX, Variant, write_recipe
from mcompose.pipeline.lab.table import LabReport
from mcompose.pipeline.measure import quieten_loading
from mcompose.pipeline.write import MergeOptions, merge
from mcompose.progress import remark
from mcompose.whole_files import write_json

__all__ = ["MixPlan", "mix_report"]

BASE = "base"
_COLUMNS = ("all", "special", "chart", "table", "document", "general", "tokens", "trained")
_TABLES: dict[str, tuple[Variant, ...]] = {"sphinx": SPHINX, "smola": SMOLA}


@dataclass(frozen=True)
class MixPlan:
    """What a run does.

    Args:
        steps: Of the two stages, chosen on seed 0 by what ``one encoder`` and ``full`` learn.
        names: Which variants; empty for all.
        questions: Of each task; None for all.
        batch: Questions asked at once.
    """

    steps: tuple[int, int] = (400, 400)
    names: tuple[str, ...] = ()
    questions: int | None = None
    batch: int = 120


def mix_report(name: str, families: Iterable[LabFamily], folder: Path, *, plan: MixPlan | None = None) -> LabReport:
    """Trains and measures all variants over several seeds.

    Args:
        name: ``sphinx`` or ``smola``.
        families: One a seed.
        folder: Where the picture goes.
        plan: What to do; None for the report's own.

    Returns:
        The table.
    """
    plan = plan or MixPlan()
    quieten_loading()
    runs, names = [], []
    for family in families:
        names.append(family.name)
        runs.append(_run(name, family, plan))
    rows = tuple(table(runs))
    plot = folder / f"{name}.png"
    _plot(rows, plot, title=f"{name}, {names[0]}: {len(runs)} seed{'s' * (len(runs) > 1)}")
    return LabReport(name, rows, plot, _COLUMNS)


def _run(name: str, family: LabFamily, plan: MixPlan) -> dict[str, dict[str, float]]:
    home = family.folder / "mixes"
    found = {BASE: _scores(family, BASE, family.base, home, plan)}
    for variant in _TABLES[name]:
        if plan.names and variant.name not in plan.names:
            continue
        checkpoint, trained = _trained(family, variant, home, plan)
        scores = _scores(family, variant.name, checkpoint, home, plan)
        found[variant.name] = {**scores, "tokens": _tokens(family, checkpoint), "trained": float(trained)}
    return found


def _trained(family: LabFamily, variant: Variant, home: Path, plan: MixPlan) -> tuple[Path, int]:
    """Returns a variant's checkpoint after its stages, and how many numbers stage 2 trained."""
    path = write_recipe(family, variant, home / f"{variant.slug}.yaml", steps=plan.steps)
    whole = home / f"{variant.slug}.whole"
    merge(path, options=MergeOptions(quiet=True))
    remark(f"{family.folder.name}: stage 1, {variant.name}")
    first = align(path, stage=1, options=AlignOptions(quiet=True))
    assert first is not None, "one process"
    last = 2 if variant.train or variant.lora else 1
    remark(f"{family.folder.name}: stage {last}, {variant.name}")
    report = align(path, stage=last, options=AlignOptions(quiet=True, export=True, output=whole))
    assert report is not None, "one process"
    return whole, sum(size["parameters"] for size in report.record["trained"].values()) if last == 2 else 0


def _scores(family: LabFamily, name: str, checkpoint: Path, home: Path, plan: MixPlan) -> dict[str, float]:
    from mcompose.pipeline.lab.chimera.measures import answered  # noqa: PLC0415 - torch

    known = home / "answers" / f"{checkpoint.name}-{plan.questions}.json"
    if not known.is_file():
        remark(f"{family.folder.name}: asking {name}")
        tasks = list(family.tasks.values())
        write_json(known, answered(checkpoint, tasks, batch=plan.batch, limit=plan.questions))
    return domain_means(json.loads(known.read_text(encoding="utf-8")))


def _tokens(family: LabFamily, checkpoint: Path) -> float:
    """Mean tokens of the held-out pictures."""
    from PIL import Image  # noqa: PLC0415 - seconds, with torch
    from transformers import AutoProcessor  # noqa: PLC0415

    from mcompose.modeling import register  # noqa: PLC0415

    register()
    eyes = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False).processors["eyes"]
    counts = []
    for path in sorted((family.folder / "data" / "media").rglob("*.png")):
        with Image.open(path) as picture:
            counts.append(eyes.count(*picture.size))
    return statistics.fmean(counts)


def _plot(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Draws right answers by domain, and against the tokens of a picture."""
    known = {(row.variant, row.metric): row for row in rows}
    names = list(dict.fromkeys(row.variant for row in rows))
    figure = new_figure((14, 5))
    bars, scatter = figure.subplots(1, 2, width_ratios=[1.7, 1])
    metrics = [metric for metric in ("special", "chart", "table", "document", "general") if (names[0], metric) in known]
    width = 0.86 / len(names)
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(metrics))]
        own = [known[name, metric] for metric in metrics]
        bars.bar(
            places, [100 * row.mean for row in own], width, yerr=[100 * row.std for row in own], label=name,
            error_kw={"linewidth": 1},
        )  # fmt: skip
        cost = known.get((name, "tokens"))
        if cost is not None:
            score = known[name, "special"]
            scatter.errorbar(cost.mean, 100 * score.mean, yerr=100 * score.std, fmt="o", color=f"C{number}", label=name)
    bars.set_xticks(range(len(metrics)), metrics)
    bars.set(ylabel="right answers, %", ylim=(0, 100))
    bars.legend(fontsize=7, frameon=False, ncols=3, loc="upper right")
    scatter.set(xlabel="tokens of a picture", ylabel="right answers on charts, tables, documents, %")
    _plain(bars)
    _plain(scatter)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
