"""Plans and runs merges: which tensor comes from where, and the engine that computes and writes it.

* ``plan`` turns recipe and headers into one job for each output tensor (``job``), with ``pairing`` for tensors that the
  sources share, ``settings`` for their weights and parameters, and ``initial_values`` for new tensors. ``build`` places
  the jobs in files and estimates memory (``memory``).
* ``execute`` runs a plan on several threads, ``stream`` one tensor on one thread, with the method's ``program``;
  ``survey`` measures the whole model first where a method needs it, ``clock`` the time. The folder ``device`` does the
  same on a torch device.
* ``catalogue`` finds merge methods, ``mergekit_bridge`` those of mergekit.
* ``compatibility`` measures whether sources share a base; ``verify`` checks an output, ``diff`` compares checkpoints.

The package works on tensors only, not on networks. Importing it loads neither torch nor mergekit.
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
