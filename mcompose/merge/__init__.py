"""Recipe, headers and maths to bytes: which tensor comes from where, and the engine that writes it.

``plan`` says what becomes of every tensor, from headers alone; ``build`` places it; ``execute`` runs it, with
``stream`` for one tensor on one thread. ``compatibility`` measures whether sources share a base. The room maps tensors
to tensors: it knows no network. Importing it loads neither torch nor mergekit.
"""

from mcompose.merge.build import build_plan
from mcompose.merge.catalogue import catalogue, find_method
from mcompose.merge.compatibility import BaseFigures, check_same_base
from mcompose.merge.execute import TensorSink, default_threads, execute
from mcompose.merge.initial_values import new_job, start_of
from mcompose.merge.job import Contribution, Dropped, MergePlan, Segment, TensorJob
from mcompose.merge.plan import KeyOf, SourceParts, copy_job, language_jobs, output_layers, tower_jobs

__all__ = [
    "BaseFigures",
    "Contribution",
    "Dropped",
    "KeyOf",
    "MergePlan",
    "Segment",
    "SourceParts",
    "TensorJob",
    "TensorSink",
    "build_plan",
    "catalogue",
    "check_same_base",
    "copy_job",
    "default_threads",
    "execute",
    "find_method",
    "language_jobs",
    "new_job",
    "output_layers",
    "start_of",
    "tower_jobs",
]
