"""What a trial is asked, and the number that comes of it.

Three objectives. *validation*: the score of the given tasks, their mean when there are several. *single*: the mean
over the modalities of the scores of tasks that show one modality each, for compositions without a joint validation
set, as the paper of Model Composition (arXiv:2402.12750) chooses its coefficients. *consistency*: answers alone, for
the rule of ``search_consistency``; what the questions' answers should be is never looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mcompose.errors import RequestError, nearest_name
from mcompose.evaluate import EvaluateOptions, Task, check_template, evaluate_task, figures, find_tasks, load_task
from mcompose.progress import OnCount

if TYPE_CHECKING:
    from mcompose.evaluate import EvaluatedModel

__all__ = ["Objective", "ObjectiveSpec", "Outcome", "open_objective"]

ObjectiveKind = Literal["validation", "single", "consistency"]
PROMPTS = 100
"""Unlabelled inputs of the consistency rule, as in its paper."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is to be asked.

    Args:
        objective: What is computed from the answers.
        tasks: Task files or folders of them.
        task_weights: Task name to its share in the mean; 1 where nothing is said. Only for ``validation``.
        limit: Only the first questions of each task; for ``consistency``, how many questions of all tasks together
            (default 100), drawn by the seed.
        batch_size: ObjectiveSpec at once.
        template: How a question becomes a turn; None for the task's way.
        leave_out: Drop media that the model does not take.
        seed: Draws the questions of ``consistency``.
    """

    objective: ObjectiveKind
    tasks: tuple[str | Path, ...]
    task_weights: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None
    batch_size: int = 32
    template: str | None = None
    leave_out: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Args:
        score: 0 to 1, the larger the better; None where only neighbours decide it.
        scores: Task to its score.
        answers: Every answer, in order; only for ``consistency``.
        digest: Names the bytes of the merged model.
    """

    score: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Objective:
    """The questions, read.

    Args:
        questions: Tasks and settings that the user asks for.
        tasks: The tasks.
        notes: Sentences for the user.
    """

    questions: ObjectiveSpec
    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()

    def evaluate(self, evaluated: EvaluatedModel, *, on_progress: OnCount | None = None) -> Outcome:
        """Asks a model everything.

        Args:
            evaluated: The model, loaded.
            on_progress: Called with the task, the questions done, and the questions in all.

        Returns:
            Its score, or its answers.

        Raises:
            RequestError: The model does not take what a task shows.
            MediaError: A medium cannot be read.
        """
        wanted = self.questions
        options = EvaluateOptions(batch_size=wanted.batch_size, leave_out=wanted.leave_out, template=wanted.template)
        scores: dict[str, float] = {}
        answers: list[str] = []
        for task in self.tasks:
            made = evaluate_task(evaluated, task, progress=on_progress, options=options)
            answers += [prediction.output.strip() for prediction in made]
            if wanted.objective != "consistency":
                scores[task.name] = figures(task, made)[0].value
        if wanted.objective == "consistency":
            return Outcome(None, answers=tuple(answers))
        return Outcome(self.score(scores), scores)

    def score(self, scores: Mapping[str, float]) -> float:
        """One number of the tasks' scores.

        Args:
            scores: Task to score.

        Returns:
            The weighted mean over the tasks; for ``single``, the mean over the modalities of the mean over their tasks.
        """
        if self.questions.objective == "single":
            groups: dict[str, list[float]] = {}
            for task in self.tasks:
                groups.setdefault(_media(task)[0], []).append(scores[task.name])
            return sum(sum(group) / len(group) for group in groups.values()) / len(groups)
        weights = {task.name: self.questions.task_weights.get(task.name, 1.0) for task in self.tasks}
        return sum(weights[name] * scores[name] for name in weights) / sum(weights.values())

    def check(self, modalities: Sequence[str], *, name: str) -> None:
        """Refuses tasks that show what the model will not take.

        Args:
            modalities: Modalities that the model takes.
            name: Name of the model, for messages.

        Raises:
            RequestError: A task shows something else.
        """
        for task in self.tasks:
            lacking = [m for m in _shown(task) if m not in modalities]
            if lacking and not self.questions.leave_out:
                takes = ", ".join(modalities) or "text only"
                raise RequestError(
                    f"The task {task.name} shows {lacking[0]}, which {name} does not take (it takes {takes}).",
                    hint="Leave the task out, or let such inputs be left out: --leave-out.",
                )

    def to_json(self) -> dict[str, Any]:
        """Returns everything that decides the outcome, as plain values; task files by their content."""
        wanted = self.questions
        told = {k: v for k, v in vars(wanted).items() if k not in {"tasks", "seed", "batch_size", "task_weights"}}
        files = {task.name: hashlib.sha256(task.file.read_bytes()).hexdigest()[:16] for task in self.tasks}
        drawn = {"seed": wanted.seed} if wanted.objective == "consistency" else {}
        return {**told, **drawn, "task_weights": dict(wanted.task_weights), "tasks": files}


def open_objective(questions: ObjectiveSpec) -> Objective:
    """Reads the tasks.

    Args:
        questions: Tasks and settings that the user asks for.

    Returns:
        The tasks that the objective can use.

    Raises:
        RequestError: A task is missing, broken, of no use for the objective, or named twice.
    """
    if questions.template is not None:
        check_template(questions.template)
    consistency = questions.objective == "consistency"
    limit = None if consistency else questions.limit
    tasks = [load_task(file, limit=limit) for file in find_tasks(questions.tasks)]
    _check_names(tasks, questions)
    if consistency:
        return Objective(questions, _drawn(tasks, questions.limit or PROMPTS, seed=questions.seed))
    free = next((task for task in tasks if not task.metrics), None)
    if free is not None:
        raise RequestError(
            f"The answers of {free.file} are free texts that only a judge can compare.",
            hint="Search by tasks that have a rule, or by --objective consistency.",
        )
    if questions.objective != "single":
        return Objective(questions, tuple(tasks))
    kept = tuple(task for task in tasks if len(_media(task)) == 1)
    left = [task.name for task in tasks if len(_media(task)) != 1]
    if not kept:
        raise RequestError(
            "No task shows one modality alone, which '--objective single' needs.",
            hint=f"Found: {', '.join(left)}.",
        )
    note = f"Left out, since they do not show one modality alone: {', '.join(left)}."
    return Objective(questions, kept, (note,) if left else ())


def _media(task: Task) -> list[str]:
    return [modality for modality in task.modalities if modality != "text"]


def _shown(task: Task) -> list[str]:
    return list(dict.fromkeys(x.modality for item in task.items for x in item.inputs if x.modality != "text"))


def _check_names(tasks: Sequence[Task], questions: ObjectiveSpec) -> None:
    names = [task.name for task in tasks]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise RequestError(f"Two tasks are called '{twice}'.", hint="Give one of them another 'task:' name.")
    if questions.task_weights and questions.objective != "validation":
        raise RequestError(
            f"'--objective {questions.objective}' weighs no tasks.", hint="Leave the tasks' weights out."
        )
    for name, weight in questions.task_weights.items():
        if name not in names:
            raise RequestError(f"A weight is given for '{name}', which is not a task.", hint=nearest_name(name, names))
        if not weight >= 0 or weight == float("inf"):
            raise RequestError(f"The weight of task '{name}' is {weight:g}.", hint="Weights are 0 or larger.")
    if tasks and sum(questions.task_weights.get(name, 1.0) for name in names) == 0:
        raise RequestError("All tasks have the weight 0.", hint="Give at least one a weight.")


def _drawn(tasks: Sequence[Task], count: int, *, seed: int) -> tuple[Task, ...]:
    """Draws questions from all tasks together, in the order of the tasks."""
    places = [(t, i) for t, task in enumerate(tasks) for i in range(len(task.items))]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(places))[:count]
    kept = sorted(places[int(k)] for k in order)
    drawn = []
    for number, task in enumerate(tasks):
        items = tuple(task.items[i] for t, i in kept if t == number)
        if items:
            drawn.append(replace(task, items=items))
    return tuple(drawn)
