"""The steps of a run, in order: what the command line calls and what a script may call.

Each function is one command: it calls the rooms below and returns a report that prints itself as text or as JSON. Heavy
libraries are imported by the steps that need them, so that ``plan`` and ``inspect`` start fast.
"""

from mcompose.pipeline.check import diff, verify
from mcompose.pipeline.headers import inspect, plan
from mcompose.pipeline.measure import (
    EvaluateOptions,
    GenerateOptions,
    evaluate,
    generate,
    lab_make,
    lab_report,
)
from mcompose.pipeline.write import MergeOptions, merge, push

__all__ = [
    "EvaluateOptions",
    "GenerateOptions",
    "MergeOptions",
    "diff",
    "evaluate",
    "generate",
    "inspect",
    "lab_make",
    "lab_report",
    "merge",
    "plan",
    "push",
    "verify",
]
