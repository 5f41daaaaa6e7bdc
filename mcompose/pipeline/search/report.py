"""What a search has found: the chosen trial, the table, the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.errors import InterruptedRunError, NumericsError
from mcompose.pipeline.search.consistency import changed_answers, choose
from mcompose.pipeline.search.plot import Dot, plot_search
from mcompose.pipeline.search.recipe_text import MARK, searched_path, searched_text
from mcompose.whole_files import write_json, write_text

if TYPE_CHECKING:
    from mcompose.pipeline.search.objective import Objective
    from mcompose.pipeline.search.space import Settings, Space
    from mcompose.pipeline.search.study import Study, StudyPlan, TrialRow
    from mcompose.recipe import LoadedRecipe

__all__ = ["SearchReport", "write_results"]

TABLE_FILE, PLOT_FILE = "search.json", "search.png"
LISTED = 10
"""Trials in the printed table."""


@dataclass(frozen=True)
class SearchReport:
    """A finished search.

    Args:
        recipe: The searched recipe that was written.
        folder: Folder of the search.
        objective: Objective that the scores measure.
        space: Coefficients that were varied.
        rows: All trials, with their scores.
        best: The chosen one.
        tied: Further candidates of the consistency rule that change as few answers.
        plot: The picture; None without matplotlib.
        notes: Sentences for the user.
    """

    recipe: Path
    folder: Path
    objective: str
    space: Space
    rows: tuple[TrialRow, ...]
    best: TrialRow
    tied: tuple[int, ...] = ()
    plot: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def authored(self) -> TrialRow | None:
        """Returns the trial of the recipe as it is written."""
        return next((row for row in self.rows if row.authored and row.state == "done"), None)

    def to_text(self) -> str:
        """Returns the report as text."""
        count = sum(row.finished for row in self.rows)
        failed = sum(row.state == "failed" for row in self.rows)
        lines = [
            f"{self.recipe}",
            f"  best      trial {self.best.number} of {count}: {self.score_text()}",
            *(f"  {kind:9} {text}" for kind, text in settings_lines(self.best.settings).items()),
        ]
        if failed:
            lines.append(f"  failed    {failed} merge{'s' * (failed > 1)} came out not finite")
        if self.tied:
            lines.append(f"  as good   trial{'s' * (len(self.tied) > 1)} {', '.join(map(str, self.tied))}")
        lines.append(f"  all       {self.folder / TABLE_FILE}" + (f", {self.plot}" if self.plot else ""))
        return "\n".join(lines)

    def score_text(self) -> str:
        """Returns the best score in words."""
        score = self.best.score or 0.0
        if self.objective == "consistency":
            total = len(self.best.answers)
            return f"{round((1 - score) * total)} of {total} answers change from one coefficient to the next"
        own = self.authored
        before = f" (the recipe as it was: {own.score:.4f})" if own is not None and own.score is not None else ""
        return f"{self.objective} {score:.4f}{before}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """The best trials.

        Returns:
            Header, and rows from the best down.
        """
        labels = list(self.space.coordinates(self.best.settings))
        scored = [row for row in self.rows if row.score is not None]
        ranked = sorted(scored, key=lambda row: (row.number != self.best.number, -(row.score or 0.0), row.number))
        rows = [
            (row.number, float(row.score or 0.0), *(float(v) for v in self.space.coordinates(row.settings).values()))
            for row in ranked[:LISTED]
        ]
        return ("trial", "score", *labels), rows

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints and ``search.json`` holds."""
        own = self.authored
        return {
            "recipe": str(self.recipe),
            "folder": str(self.folder),
            "objective": self.objective,
            "space": self.space.to_json(),
            "best": _row_json(self.best),
            "as_good": list(self.tied),
            "authored": None if own is None else _row_json(own),
            "trials": [_row_json(row) for row in self.rows],
            "plot": None if self.plot is None else str(self.plot),
            "notes": list(self.notes),
        }


def settings_lines(settings: Settings) -> dict[str, str]:
    """Weights and parameters for people."""
    lines = {}
    if settings.weights is not None:
        lines["weights"] = ", ".join(f"{name} {_spelt(value)}" for name, value in settings.weights.items())
    if settings.parameters:
        lines["values"] = ", ".join(f"{name} {_spelt(value)}" for name, value in settings.parameters.items())
    return lines


def _spelt(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_spelt, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _row_json(row: TrialRow) -> dict[str, Any]:
    told: dict[str, Any] = {"trial": row.number, "state": row.state, **row.settings.to_json(), "score": row.score}
    further = {
        "scores": dict(row.scores),
        "seconds": row.seconds,
        "digest": row.digest,
        "reason": row.reason,
        "authored": row.authored,
        "same_as": row.same_as,
        "point": None if row.point is None else list(row.point),
    }
    return told | {
        name: value
        for name, value in further.items()
        if value is not None and value is not False and value != "" and value != {}
    }


def write_results(loaded: LoadedRecipe, study: Study, objective: Objective) -> SearchReport:
    """Chooses, and writes the searched recipe, the table and the picture.

    Args:
        loaded: The authored recipe.
        study: Study that holds the trials.
        objective: Tasks and settings that scored them.

    Returns:
        The report.

    Raises:
        InterruptedRunError: The time was up before anything could be chosen.
        NumericsError: No trial could be merged.
    """
    plan, kind = study.plan, objective.questions.objective
    rows = study.rows()
    tied: tuple[TrialRow, ...]
    if kind == "consistency":
        _refuse_unfinished(rows, study)
        rows, tied = _by_consistency(rows)
    else:
        top = max((row.score for row in rows if row.score is not None), default=None)
        tied = tuple(row for row in rows if row.score is not None and row.score == top)[:1]
    if not tied:
        _refuse_unfinished(rows, study, least=1)
        reason = next((row.reason for row in rows if row.reason), "")
        raise NumericsError(
            f"None of {len(rows)} trials of '{loaded.path}' can be chosen.",
            hint=f"The first failure: {reason}" if reason else "Search a wider grid.",
        )
    plot = plan.folder / PLOT_FILE
    report = SearchReport(
        recipe=searched_path(loaded.path),
        folder=plan.folder,
        objective=kind,
        space=plan.space,
        rows=tuple(rows),
        best=tied[0],
        tied=tuple(row.number for row in tied[1:]),
    )
    drawn = plot_search(_dots(report), _labels(report), plot, title=_title(loaded, report), measure=_measure(kind))
    report = replace(report, plot=plot if drawn else None, notes=(*objective.notes, *_notes(report, plan, drawn=drawn)))
    write_json(plan.folder / TABLE_FILE, report.to_dict())
    write_text(report.recipe, searched_text(loaded, report.best.settings, remarks=_remarks(loaded, report, objective)))
    return report


def _notes(report: SearchReport, plan: StudyPlan, *, drawn: bool) -> list[str]:
    """Returns remarks about the search that its table does not show."""
    notes = []
    if plan.authored is None and not plan.grid:
        notes.append("The recipe's own settings are outside the search space and were not tried.")
    done = sum(row.finished for row in report.rows)
    if done < plan.budget:
        notes.append(f"The time was up after {done} of {plan.budget} trials; the same command resumes it.")
    if len(report.best.answers) > 1 and len(set(report.best.answers)) == 1:
        notes.append(
            f"The chosen merge answers all {len(report.best.answers)} questions alike: that is consistent, too."
        )
    if not drawn:
        notes.append("No picture was drawn: matplotlib is not installed. Install it: pip install 'mcompose[search]'.")
    return notes


def _refuse_unfinished(rows: Sequence[TrialRow], study: Study, *, least: int | None = None) -> None:
    done = sum(row.finished for row in rows)
    if done < (study.plan.budget if least is None else least):
        raise InterruptedRunError(
            f"The time was up after {done} of {study.plan.budget} trials; nothing can be chosen yet.",
            hint="Run the same command again to resume; finished trials are kept.",
        )


def _by_consistency(rows: Sequence[TrialRow]) -> tuple[list[TrialRow], tuple[TrialRow, ...]]:
    """Rows with the share of answers that stay, and the candidates with the fewest changes."""
    by_point = {row.point: row for row in rows if row.state == "done" and row.point is not None}
    counts = changed_answers({point: row.answers for point, row in by_point.items()})
    scores = {
        by_point[point].number: 1.0 - count / max(len(by_point[point].answers), 1) for point, count in counts.items()
    }
    scored = [replace(row, score=scores.get(row.number)) for row in rows]
    by_number = {row.number: row for row in scored}
    return scored, tuple(by_number[by_point[point].number] for point in choose(counts))


def _dots(report: SearchReport) -> list[Dot]:
    shown = [row for row in report.rows if row.finished]
    return [
        Dot(
            number=row.number,
            score=row.score,
            place=tuple(report.space.coordinates(row.settings).values()),
            failed=row.state == "failed",
            authored=row.authored,
            best=row.number == report.best.number,
        )
        for row in shown
    ]


def _labels(report: SearchReport) -> list[str]:
    weighted = set(report.best.settings.weights or {})
    labels = report.space.coordinates(report.best.settings)
    return [f"weight of {label}" if label.partition("@")[0] in weighted else label for label in labels]


def _title(loaded: LoadedRecipe, report: SearchReport) -> str:
    return f"{loaded.recipe.name}: {loaded.recipe.merge.method}, by {report.objective}"


def _measure(objective: str) -> str:
    return "share of answers that stay" if objective == "consistency" else f"{objective} score"


def _remarks(loaded: LoadedRecipe, report: SearchReport, objective: Objective) -> tuple[str, ...]:
    best = report.best
    count = sum(row.finished for row in report.rows)
    scores = [f"{name} {value:.4f}" for name, value in best.scores.items()]
    told = ", ".join(scores or [task.name for task in objective.tasks])
    return (
        f"{MARK.removeprefix('# ')} in {loaded.path.name}: trial {best.number} of {count}, {report.score_text()}.",
        f"Asked: {told}.",
    )
