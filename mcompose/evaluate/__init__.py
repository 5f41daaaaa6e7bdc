"""What a checkpoint is worth: tasks, scoring rules, predictions and a report.

Importing this room is free of torch; the checkpoint's loader brings it in.
"""

from mcompose.evaluate.attention_mass import attention_mass
from mcompose.evaluate.confusion import Confusion, confusion_matrix
from mcompose.evaluate.endpoint import Endpoint, EndpointError
from mcompose.evaluate.metrics import accuracy, exact_match, first_letter
from mcompose.evaluate.reading import find_tasks, load_task
from mcompose.evaluate.results import Prediction, Report, Result
from mcompose.evaluate.run import Options, evaluate, evaluate_task
from mcompose.evaluate.task import Item, MediaInput, Task
from mcompose.media import MediaError

__all__ = [
    "Confusion",
    "Endpoint",
    "EndpointError",
    "Item",
    "MediaError",
    "MediaInput",
    "Options",
    "Prediction",
    "Report",
    "Result",
    "Task",
    "accuracy",
    "attention_mass",
    "confusion_matrix",
    "evaluate",
    "evaluate_task",
    "exact_match",
    "find_tasks",
    "first_letter",
    "load_task",
]
