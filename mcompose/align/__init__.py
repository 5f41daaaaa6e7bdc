"""Short fine-tunes after a composition: each stage writes only what it trained, and checks that the rest is unchanged.

::

    run                          one stage from end to end
    parts, stage, strategy       which parts are trained, and how many steps (without torch)
    stage_data                   the samples and batches of a stage, opened before the model
    load, lora, frozen           the model: loaded, adapted, frozen parts digested
    trainer, preference          transformers' Trainer for a stage; the loss of preference pairs
    watch, schedule, memory      log and stops, learning rate, out-of-memory errors
    processes, tensor_file, plot ranks, safetensors files of torch tensors, the picture of the loss

    data/       records of datasets to batches: mixture, order, chat template, labels, masks
    experts/    stages with domain experts: router loss, router fit, masking of general tokens
    features/   outputs of frozen encoders, computed once and kept on disk
    results/    folder and delta of a stage, lineage of stages, export as a full checkpoint

Importing this package does not import torch; the names below are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.doors import lazy_names

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


__getattr__ = lazy_names(__name__, _HOME)
