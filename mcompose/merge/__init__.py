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

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.doors import lazy_names
from mcompose.merge.build import build_plan
from mcompose.merge.catalogue import catalogue, find_method
from mcompose.merge.compatibility import BaseFigures, check_same_base
from mcompose.merge.diff import DiffReport, diff
from mcompose.merge.execute import TensorSink, default_threads, execute
from mcompose.merge.initial_values import new_job, start_of
from mcompose.merge.job import Contribution, Dropped, MergePlan, Segment, TensorJob
from mcompose.merge.plan import KeyOf, SourceParts, copy_job, language_jobs, moved_places, tower_jobs
from mcompose.merge.verify import VerifyReport, verify

if TYPE_CHECKING:
    from mcompose.merge.clock import Phases
    from mcompose.merge.device.stream import check_device
    from mcompose.merge.settings import output_dtype

__all__ = [
    "BaseFigures",
    "Contribution",
    "DiffReport",
    "Dropped",
    "KeyOf",
    "MergePlan",
    "Phases",
    "Segment",
    "SourceParts",
    "TensorJob",
    "TensorSink",
    "VerifyReport",
    "build_plan",
    "catalogue",
    "check_device",
    "check_same_base",
    "copy_job",
    "default_threads",
    "diff",
    "execute",
    "find_method",
    "language_jobs",
    "moved_places",
    "new_job",
    "output_dtype",
    "start_of",
    "tower_jobs",
    "verify",
]

_HOME = {
    "Phases": "clock",
    "check_device": "device.stream",
    "output_dtype": "settings",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
