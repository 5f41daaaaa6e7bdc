"""What an evaluation yields: predictions, figures, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mcompose.evaluate.confusion import Confusion
from mcompose.evaluate.metrics import Verdict, accuracy, graded
from mcompose.evaluate.routes import Routes
from mcompose.evaluate.task import Task

__all__ = ["Prediction", "Report", "Result", "figures"]


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Args:
        id: The item's.
        prompt: What was asked.
        output: What the model wrote.
        answer: What it should be.
        right: The first rule's verdict.
        left_out: Modalities of inputs that were dropped.
        seen: Inputs that were kept.
        verdicts: Every metric's: right or wrong, or a share; None where the output, or the judge's reply, could not be
            parsed.
        skipped: Why nothing was asked; empty when it was.
        judge: What the judge replied.
        key: Names the question's words and media.
        accepted: Further right answers.
        routes: Modality to the experts of each of its media; empty in checkpoints without experts.
    """

    id: str
    prompt: str
    output: str
    answer: str
    right: bool
    left_out: tuple[str, ...]
    seen: int
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    skipped: str = ""
    judge: str = ""
    key: str = ""
    accepted: tuple[str, ...] = ()
    routes: Routes = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One figure.

    Args:
        task: The task's name.
        metric: What was measured.
        value: 0 to 1.
        n: Questions behind it.
        chance: What guessing gives; 0 when it is not known.
        unparsed: Answers that could not be parsed; they count as wrong.
        skipped: Questions that were left out of n since a medium could not be read.
    """

    task: str
    metric: str
    value: float
    n: int
    chance: float
    unparsed: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Report:
    """All figures of one checkpoint.

    Args:
        checkpoint: Its folder.
        results: In the order of the tasks.
        experts: Where items went in a checkpoint with experts.
        routing: Modality to what its router chose, where tasks name domains.
    """

    checkpoint: str
    results: tuple[Result, ...]
    experts: str = "auto"
    routing: Mapping[str, Confusion] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns what ``mcompose eval --json`` prints; what is 0 and need not be said is left out."""
        rows = []
        for r in self.results:
            told = {name: getattr(r, name) for name in ("chance", "unparsed", "skipped")}
            rows.append(
                {"task": r.task, "metric": r.metric, "value": r.value, "n": r.n} | {k: v for k, v in told.items() if v}
            )
        forced = {} if self.experts == "auto" else {"experts": self.experts}
        routing = {modality: matrix.to_json() for modality, matrix in self.routing.items()}
        return {
            "checkpoint": self.checkpoint,
            **forced,
            "results": rows,
            **({"routing": routing} if routing else {}),
        }


def figures(task: Task, made: Sequence[Prediction]) -> list[Result]:
    """Returns one row per metric.

    Args:
        task: The task.
        made: One prediction per item.

    Returns:
        The rows. When inputs were left out, ``<metric>_seen`` counts the questions of which one input was shown.
        Nothing, when every question was skipped.
    """
    asked = [p for p in made if not p.skipped]
    rows = [_figure(task, metric, asked, len(made)) for metric in (asked[0].verdicts if asked else ())]
    seen = [p for p in asked if p.seen]
    if seen and any(p.left_out for p in asked):
        rows.append(_figure(task, task.metrics[0], seen, len(made), suffix="_seen"))
    return rows


def _figure(task: Task, metric: str, asked: Sequence[Prediction], items: int, *, suffix: str = "") -> Result:
    verdicts = [p.verdicts[metric] for p in asked]
    unparsed = 0 if suffix else sum(verdict is None for verdict in verdicts)
    skipped = 0 if suffix else items - len(asked)
    entry = graded(metric)
    if entry is None:
        value, chance = accuracy([verdict is True for verdict in verdicts]), task.chance
    elif entry.texts is not None:
        value, chance = entry.texts([p.output for p in asked], [(p.answer, *p.accepted) for p in asked]), 0.0
    else:
        value, chance = entry.together([entry.worst if one is None else float(one) for one in verdicts]), 0.0
    return Result(task.name, metric + suffix, value, len(asked), chance, unparsed, skipped)
