"""Measures checkpoints: tasks, metrics, predictions, reports."""

from mcompose.evaluate.answering import Answerer, load_answerer, media_of
from mcompose.evaluate.metrics import METRICS, exact_match, letter
from mcompose.evaluate.run import EvaluateOptions, Report, Result, evaluate, run_tasks
from mcompose.evaluate.task import PLACEHOLDERS, Item, Task, find_tasks, read_task

__all__ = [
    "METRICS",
    "PLACEHOLDERS",
    "Answerer",
    "EvaluateOptions",
    "Item",
    "Report",
    "Result",
    "Task",
    "evaluate",
    "exact_match",
    "find_tasks",
    "letter",
    "load_answerer",
    "media_of",
    "read_task",
    "run_tasks",
]
