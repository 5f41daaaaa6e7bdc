"""``mcompose search``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcompose.cli import output
from mcompose.cli.options import (
    AllowOption,
    JsonOption,
    QuietOption,
    RecipeArgument,
    ResumeOption,
    ThreadsOption,
    TrustOption,
)
from mcompose.errors import RequestError

if TYPE_CHECKING:
    from mcompose.pipeline.search.report import SearchReport

__all__ = ["search"]


class Objective(StrEnum):
    """What a trial is worth."""

    VALIDATION = "validation"
    SINGLE = "single"
    CONSISTENCY = "consistency"


TaskOption = Annotated[
    list[str], typer.Option(metavar="TASK", help="Task file or folder; may be given again. Not your test set.")
]
ObjectiveOption = Annotated[Objective, typer.Option(help="Objective that a trial is scored by.")]
TaskWeightOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME:WEIGHT", help="Share of a task in the mean; default: 1.")
]
WeightsOption = Annotated[bool, typer.Option("--weights/--no-weights", help="Search the sources' weights.")]
SumOption = Annotated[
    float | None, typer.Option("--sum", metavar="SUM", help="Sum of the weights; default for averages: 1.")
]
LowOption = Annotated[float | None, typer.Option(help="Smallest weight; default: 0.")]
HighOption = Annotated[float | None, typer.Option(help="Largest weight; default: 1, on an average's grid 0.6.")]
StepOption = Annotated[float | None, typer.Option(help="Step of the grid of consistency; default: 0.1.")]
GradientOption = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Search weights at N anchors over the layers, not one per source."),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:LOW:HIGH[:STEP]", help="Also search a parameter of the method; or NAME:word,word."),
]
TrialsOption = Annotated[
    int | None, typer.Option(min=1, help="Trials in all, earlier runs included; default: 40, or the whole grid.")
]
TimeoutOption = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Start no trial after this time.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes; each holds a model.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the suggestions, and of the questions of consistency.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions that are answered together.")]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="First questions of each task; for consistency, of all tasks; default there: 100."),
]
TemplateOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="chat, plain, vicuna, or a text with {prompt}.")
]
LeaveOutOption = Annotated[
    bool, typer.Option("--leave-out", help="Drop media that the model cannot take instead of refusing.")
]
FolderOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the search; default: RECIPE-search.")
]


def search(
    recipe: RecipeArgument,
    task: TaskOption,
    objective: ObjectiveOption = Objective.VALIDATION,
    task_weight: TaskWeightOption = None,
    weights: WeightsOption = True,
    total: SumOption = None,
    low: LowOption = None,
    high: HighOption = None,
    step: StepOption = None,
    gradient: GradientOption = None,
    parameter: ParameterOption = None,
    trials: TrialsOption = None,
    timeout: TimeoutOption = None,
    workers: WorkersOption = 1,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    batch_size: BatchOption = 32,
    template: TemplateOption = None,
    leave_out: LeaveOutOption = False,
    target: FolderOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    allow_different_base: AllowOption = False,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search merge coefficients; writes RECIPE-searched.yaml beside the recipe. Interrupted searches resume.

    validation: the tasks' mean score. single: the mean over modalities of tasks that show one modality each.
    consistency: no labels; the coefficient around which the answers change least (AdaMMS), on a grid.

    Weights of averages (naivemc, linear) add up to 1; weights of deltas (ties, task_arithmetic, ...) are free.

    Example: mcompose search recipe.yaml --task data/val.jsonl --trials 40 --workers 2

    Example: mcompose search recipe.yaml --task data/questions.jsonl --objective consistency
    """
    from mcompose.pipeline.search import run as step_search
    from mcompose.pipeline.search.objective import ObjectiveSpec
    from mcompose.pipeline.search.request import SpaceRequest

    space = SpaceRequest(weights, total, low, high, step, gradient, tuple(parameter or ()))
    questions = ObjectiveSpec(
        objective=objective.value, tasks=tuple(task), task_weights=dict(map(_weight, task_weight or ())), limit=limit,
        batch_size=batch_size, template=template, leave_out=leave_out, seed=seed,
    )  # fmt: skip
    options = step_search.SearchOptions(
        space=space, trials=trials, timeout=timeout, workers=workers, seed=seed, output=target, resume=resume,
        threads=threads, allow_different_base=allow_different_base, trust_remote_code=trust_remote_code, quiet=quiet,
    )  # fmt: skip
    _print(step_search.search(recipe, questions, options=options), as_json=as_json)


def _print(report: SearchReport, *, as_json: bool) -> None:
    for note in report.notes:
        output.say(note)
    if as_json:
        output.json_data(report.to_dict())
        return
    header, rows = report.table()
    output.data(f"{report.to_text()}\n\n{output.table(rows, header=header)}")


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition(":")
    try:
        return name, float(number)
    except ValueError:
        raise RequestError(
            f"'--task-weight {text}' is not a weight.", hint="Write the task's name and a number: joint-sum:2."
        ) from None
