"""Short fine-tunes after a composition: a stage trains named parts and proves that the others are untouched.

::

    run, stage, schedule         one stage from end to end; its steps and learning rates
    parts, strategy              what is trained, from headers (no torch)
    data/                        records and media to labelled batches, in an order that is known before it starts
    experts/                     stages with domain experts: router's loss, masking of general tokens (GSCM)
    features/                    features of frozen encoders, computed once
    load, lora, frozen           the model, adapted, frozen and digested
    trainer, watch, memory       transformers' Trainer, its log, and what stops it
    preference                   the loss of pairs of answers (DPO)
    results/                     what a stage leaves behind, and the full checkpoint that stages export to

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
