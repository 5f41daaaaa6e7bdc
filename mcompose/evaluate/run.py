"""Evaluation: tasks asked of a checkpoint, predictions kept, one row per task and metric.

What a checkpoint cannot take is an error, unless inputs may be left out. Then an input of a modality that it lacks
is dropped, placeholder and all, and the question is asked about what is left: a donor alone on a joint question is
shown its own modality only. Its accuracy still counts every question; a second row, ``<metric>_seen``, counts the
questions of which it saw at least one input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.errors import RequestError
from mcompose.evaluate.media import read_media
from mcompose.evaluate.metrics import accuracy, rule_for
from mcompose.evaluate.task import Item, MediaInput, Task, find_tasks, load_task

if TYPE_CHECKING:
    from mcompose.evaluate.subject import Subject

__all__ = ["Options", "Prediction", "Report", "Result", "evaluate", "evaluate_task"]


@dataclass(frozen=True)
class Options:
    """What an evaluation seldom needs.

    Args:
        leave_out: Drop inputs of modalities that the checkpoint lacks, instead of refusing the task.
        predictions: Folder for one JSON-lines file of predictions per task.
        trust_remote_code: Whether code that the checkpoint ships may run.
    """

    leave_out: bool = False
    predictions: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Args:
        id: The item's.
        prompt: What was asked.
        output: What the model wrote.
        answer: What it should be.
        right: The rule's verdict.
        left_out: Modalities of inputs that were dropped.
        seen: Inputs that were kept.
    """

    id: str
    prompt: str
    output: str
    answer: str
    right: bool
    left_out: tuple[str, ...]
    seen: int


@dataclass(frozen=True)
class Result:
    """One figure.

    Args:
        task: The task's name.
        metric: What was measured.
        value: 0 to 1.
        n: Questions behind it.
        chance: What guessing gives.
    """

    task: str
    metric: str
    value: float
    n: int
    chance: float


@dataclass(frozen=True)
class Report:
    """All figures of one checkpoint.

    Args:
        checkpoint: Its folder.
        results: In the order of the tasks.
    """

    checkpoint: str
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``mcompose eval --json`` prints."""
        rows = [{"task": r.task, "metric": r.metric, "value": r.value, "n": r.n} for r in self.results]
        return {"checkpoint": self.checkpoint, "results": rows}


def evaluate(
    checkpoint: Path,
    tasks: Sequence[str | Path],
    *,
    batch_size: int = 32,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    options: Options | None = None,
) -> Report:
    """Evaluates a checkpoint.

    Args:
        checkpoint: Its folder: native, composed, points or text.
        tasks: Task files, or folders of them.
        batch_size: Questions at once.
        limit: Only the first so many questions of each task.
        progress: Told task, questions done, and questions in all.
        options: What is seldom needed.

    Returns:
        The report.

    Raises:
        RequestError: A task or medium is missing or broken, or the checkpoint lacks a modality.
        CheckpointError: The checkpoint cannot be loaded.
    """
    options = options or Options()
    loaded = [load_task(file, limit=limit) for file in find_tasks(tasks)]
    from mcompose.evaluate.subject import load_subject  # noqa: PLC0415 - tasks are checked before torch is loaded

    subject = load_subject(checkpoint, trust_remote_code=options.trust_remote_code)
    if not options.leave_out:
        for task in loaded:
            _refuse_lacking(task, subject)
    results: list[Result] = []
    for task in loaded:
        made = evaluate_task(subject, task, batch_size=batch_size, progress=progress)
        if options.predictions:
            _save(options.predictions / f"{task.name}.jsonl", task, made)
        results += _figures(task, made)
    return Report(str(checkpoint), tuple(results))


def evaluate_task(
    subject: Subject,
    task: Task,
    *,
    batch_size: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Prediction]:
    """Asks one task; inputs of modalities that the checkpoint lacks are dropped.

    Args:
        subject: The loaded checkpoint.
        task: The task.
        batch_size: Questions at once.
        progress: Told task, questions done, and questions in all.

    Returns:
        One prediction per item, in the task's order.
    """
    rule = rule_for(task.metric)
    found: dict[int, Prediction] = {}
    for batch in _batches(subject, task.items, batch_size):
        kept = [_kept(subject, task.items[i]) for i in batch]
        prompts = [
            " ".join([*(x.text for x in inputs), task.items[i].question]) for i, inputs in zip(batch, kept, strict=True)
        ]
        outputs = subject.answer(prompts, _media(subject, kept), max_new_tokens=task.max_new_tokens)
        for i, inputs, prompt, output in zip(batch, kept, prompts, outputs, strict=True):
            item = task.items[i]
            dropped = tuple(x.modality for x in item.inputs if x not in inputs)
            verdict = rule(output, item.answer)
            found[i] = Prediction(item.id, prompt, output, item.answer, verdict, dropped, len(inputs))
        if progress:
            progress(task.name, len(found), len(task.items))
    return [found[i] for i in range(len(task.items))]


def _kept(subject: Subject, item: Item) -> list[MediaInput]:
    return [x for x in item.inputs if x.modality == "text" or x.modality in subject.modalities]


def _batches(subject: Subject, items: Sequence[Item], size: int) -> Iterator[list[int]]:
    """Batches in which all questions have the same number of items of each modality: some processors need that."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(tuple(sorted(x.modality for x in _kept(subject, item))), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _media(subject: Subject, kept: list[list[MediaInput]]) -> dict[str, list[list[Any]]]:
    rate = subject.sampling_rate
    media: dict[str, list[list[Any]]] = {}
    for modality in subject.modalities:
        rows = [
            [read_media(x.path, modality, sampling_rate=rate) for x in inputs if x.modality == modality and x.path]
            for inputs in kept
        ]
        if any(rows):
            media[modality] = rows
    return media


def _refuse_lacking(task: Task, subject: Subject) -> None:
    for item in task.items:
        for lacking in (x.modality for x in item.inputs if x.modality != "text"):
            if lacking not in subject.modalities:
                takes = ", ".join(subject.modalities) or "text only"
                raise RequestError(
                    f"The task {task.name} shows {lacking}, which {subject.folder} does not take (it takes {takes}).",
                    hint="Leave the task out, or let such inputs be left out: --leave-out.",
                )


def _figures(task: Task, made: list[Prediction]) -> list[Result]:
    rows = [Result(task.name, task.metric, accuracy([p.right for p in made]), len(made), task.chance)]
    if any(p.left_out for p in made):
        seen = [p.right for p in made if p.seen]
        if seen:
            rows.append(Result(task.name, f"{task.metric}_seen", accuracy(seen), len(seen), task.chance))
    return rows


def _save(path: Path, task: Task, made: list[Prediction]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"task": task.name, "version": task.version, "metric": task.metric}
    lines = [json.dumps(row, ensure_ascii=False) for row in (header, *(asdict(p) for p in made))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
