"""The short fine-tunes after a composition: a stage is data, its result is small, what is frozen is proven to be.

::

    parts, stage, strategy       what is trained, from headers; how steps are cut (no torch)
    samples ... collator, labels records and media to batches
    data, schedule, masks        the samples of a stage in order, and what is hidden of them
    load, lora, frozen           the model, adapted, frozen and digested
    trainer, watch, memory       transformers' Trainer, its log, its ends
    delta, folder, lineage       results of stages, one on another
    export                       the full checkpoint that they come to
    run                          one stage from end to end

Importing the room imports no torch; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcompose.align.results.export import ExportRequest, export
    from mcompose.align.results.folder import stages_folder
    from mcompose.align.results.lineage import Lineage, open_lineage
    from mcompose.align.run import StageOutcome, StageRequest, run_stage

__all__ = [
    "ExportRequest",
    "Lineage",
    "StageOutcome",
    "StageRequest",
    "export",
    "open_lineage",
    "run_stage",
    "stages_folder",
]

_HOME = {
    "export": "results.export",
    "stages_folder": "results.folder",
    "ExportRequest": "results.export",
    "Lineage": "results.lineage",
    "StageOutcome": "run",
    "StageRequest": "run",
    "open_lineage": "results.lineage",
    "run_stage": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Lazy, because the trainer takes seconds to import.
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
