"""What a checkpoint is worth: tasks, scoring rules, predictions and a report.

Importing this room is free of torch; ``EvaluatedModel`` and its loader bring it in on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mcompose.evaluate.attention_mass import attention_mass
from mcompose.evaluate.confusion import Confusion, confusion_matrix
from mcompose.evaluate.endpoint import Endpoint, EndpointError, endpoint_from
from mcompose.evaluate.judge_cache import JudgeCache
from mcompose.evaluate.metrics import accuracy, exact_match, first_letter
from mcompose.evaluate.prompts import check_template, in_chat
from mcompose.evaluate.results import Prediction, Report, Result, figures
from mcompose.evaluate.routes import NONE, TOLD, WRONG
from mcompose.evaluate.run import EvaluateOptions, evaluate, evaluate_task
from mcompose.evaluate.task import Item, MediaInput, Task
from mcompose.evaluate.task_files import find_tasks, load_task
from mcompose.media import MediaError

if TYPE_CHECKING:
    from mcompose.evaluate.evaluated_model import EvaluatedModel, load_evaluated_model

__all__ = [
    "NONE",
    "TOLD",
    "WRONG",
    "Confusion",
    "Endpoint",
    "EndpointError",
    "EvaluateOptions",
    "EvaluatedModel",
    "Item",
    "JudgeCache",
    "MediaError",
    "MediaInput",
    "Prediction",
    "Report",
    "Result",
    "Task",
    "accuracy",
    "attention_mass",
    "check_template",
    "confusion_matrix",
    "endpoint_from",
    "evaluate",
    "evaluate_task",
    "exact_match",
    "figures",
    "find_tasks",
    "first_letter",
    "in_chat",
    "load_evaluated_model",
    "load_task",
]


def __getattr__(name: str) -> Any:
    if name not in ("EvaluatedModel", "load_evaluated_model"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Lazy, because torch and transformers take seconds to import.
    return getattr(importlib.import_module("mcompose.evaluate.evaluated_model"), name)
