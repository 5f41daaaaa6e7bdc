"""A checkpoint on tasks: predictions, metrics, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mcompose.evaluate.answering import Answerer, load_answerer
from mcompose.evaluate.metrics import METRICS
from mcompose.evaluate.task import Task, read_task

__all__ = ["EvaluateOptions", "Report", "Result", "evaluate", "run_tasks"]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to measure.

    Args:
        limit: Only the first items of each task.
        batch_size: Items that are answered together.
        max_new_tokens: Longest answer.
        leave_out: Drop media that the model cannot take instead of refusing the task.
        save: Folder for the predictions, one JSONL file a task.
        trust_remote_code: Run Python code that the checkpoint ships.
        quiet: No progress bar.
    """

    limit: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 128
    leave_out: bool = False
    save: Path | None = None
    trust_remote_code: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Result:
    """One score.

    Args:
        task: Name of the task.
        metric: Name of the score.
        value: Mean over the items.
        n: Number of items; every item counts.
    """

    task: str
    metric: str
    value: float
    n: int


@dataclass(frozen=True)
class Report:
    """All scores of one checkpoint."""

    checkpoint: str
    results: tuple[Result, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"checkpoint": self.checkpoint, "results": [asdict(result) for result in self.results]}


def evaluate(folder: Path, tasks: Sequence[Path], *, options: EvaluateOptions | None = None) -> Report:
    """Measures a checkpoint.

    Args:
        folder: The checkpoint.
        tasks: Task files.
        options: How.

    Returns:
        One score a task, in order.

    Raises:
        RequestError: A task is broken, a medium is missing, or the checkpoint cannot take what a task shows.
    """
    options = options or EvaluateOptions()
    read = [read_task(path) for path in tasks]
    return run_tasks(load_answerer(folder, trust_remote_code=options.trust_remote_code), read, options=options)


def run_tasks(answerer: Answerer, tasks: Sequence[Task], *, options: EvaluateOptions) -> Report:
    """Measures a loaded checkpoint; see ``evaluate``."""
    if not options.leave_out:
        for task in tasks:
            answerer.check(task.items, task=task.name)
    total = sum(len(task.items[: options.limit]) for task in tasks)
    with tqdm(total=total, desc="eval", unit="item", disable=True if options.quiet else None) as bar:
        results = tuple(_run_task(answerer, task, options=options, bar=bar) for task in tasks)
    return Report(answerer.name, results)


def _run_task(answerer: Answerer, task: Task, *, options: EvaluateOptions, bar: Any) -> Result:
    items = list(task.items[: options.limit])
    asked = answerer.without_unknown(items) if options.leave_out else items
    answers: list[str] = []
    for start in range(0, len(items), options.batch_size):
        batch = asked[start : start + options.batch_size]
        answers += answerer.answer(batch, max_new_tokens=options.max_new_tokens)
        bar.update(len(batch))
    score = METRICS[task.metric]
    scores = [score(answer, item.answer) for answer, item in zip(answers, items, strict=True)]
    if options.save is not None:
        rows = [
            {"id": item.id, "prompt": asked_item.prompt, "answer": answer, "gold": item.answer, "score": value}
            for item, asked_item, answer, value in zip(items, asked, answers, scores, strict=True)
        ]
        options.save.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.save / f"{task.name}.jsonl").write_text(text, encoding="utf-8")
    return Result(task.name, task.label, sum(scores) / len(scores), len(scores))
