"""What a checkpoint is worth: tasks, scoring rules, predictions and a report.

Importing this room is free of torch; the checkpoint's loader brings it in.
"""

from mcompose.evaluate.metrics import accuracy, exact_match, first_letter
from mcompose.evaluate.run import Options, Prediction, Report, Result, evaluate, evaluate_task
from mcompose.evaluate.task import Item, MediaInput, Task, find_tasks, load_task

__all__ = [
    "Item",
    "MediaInput",
    "Options",
    "Prediction",
    "Report",
    "Result",
    "Task",
    "accuracy",
    "evaluate",
    "evaluate_task",
    "exact_match",
    "find_tasks",
    "first_letter",
    "load_task",
]
