"""The folder of one stage: prepared, locked, finished. Only one run uses it at a time, and foreign files are kept.

``<output>.stages/<number>/`` holds ``run.json`` (fingerprint of the run) and ``run/`` (training checkpoints) while the
stage runs; ``log.jsonl``, ``loss.png``, ``delta.safetensors``, an adapter and, written last, ``stage.json`` when it is
done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcompose.align.results.lineage import DELTA, RECORD
from mcompose.checkpoint import ADAPTER_FILE, LOCK_NAME, FolderLock, read_json_object
from mcompose.errors import CheckpointError, OutputError
from mcompose.whole_files import write_json

__all__ = ["CHECKPOINTS", "LOG", "PLOT", "finish", "is_done", "lock_stage", "prepare", "stages_folder"]

LOG = "log.jsonl"
PLOT = "loss.png"
CHECKPOINTS = "run"
_RUN = "run.json"
_STAGE_FILES = {_RUN, CHECKPOINTS, LOG, PLOT, DELTA, ADAPTER_FILE, RECORD, "adapter_config.json", LOCK_NAME}


def stages_folder(checkpoint: Path) -> Path:
    """Returns the folder of a checkpoint's stages, which is beside the checkpoint."""
    return checkpoint.parent / (checkpoint.name + ".stages")


@contextmanager
def lock_stage(folder: Path) -> Iterator[None]:
    """Locks the folder of a stage against other runs while the context is open.

    Raises:
        OutputError: Another run uses the folder, or it holds files that are not a stage's.
    """
    if folder.is_dir():
        foreign = sorted(
            path.name for path in folder.iterdir() if path.name not in _STAGE_FILES and not path.name.startswith(".")
        )
        if foreign:
            raise OutputError(
                f"The stage's folder '{folder}' holds a file that does not belong to a stage: '{foreign[0]}'.",
                hint="Choose another folder with -o DIR.",
            )
    lock = FolderLock.take(folder)
    try:
        yield
    finally:
        if folder.is_dir():
            (folder / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


def is_done(folder: Path, fingerprint: str) -> bool:
    """Returns whether the folder holds the finished result of the run with this fingerprint."""
    return (folder / RECORD).is_file() and _read(folder / _RUN).get("fingerprint") == fingerprint


def prepare(folder: Path, *, fingerprint: str, resume: bool) -> str:
    """Prepares the folder of a stage, and deletes what belongs to another run.

    Args:
        folder: Folder of the stage.
        fingerprint: Fingerprint of this run.
        resume: Whether to keep an earlier run of the same fingerprint, to resume it.

    Returns:
        A sentence about what was deleted; empty if nothing was.
    """
    earlier = _read(folder / _RUN).get("fingerprint")
    if resume and earlier == fingerprint:
        return ""
    discarded = False
    for name in sorted(_STAGE_FILES - {LOCK_NAME}):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
            discarded = True
        elif path.exists():
            path.unlink()
            discarded = True
    write_json(folder / _RUN, {"fingerprint": fingerprint})
    if not discarded:
        return ""
    why = "on request" if not resume else "another recipe, other data or another checkpoint"
    return f"An earlier run in '{folder.name}' was discarded ({why})."


def finish(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record, which marks the stage as done, and removes the training checkpoints."""
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path) if path.is_file() else {}
    except CheckpointError:
        return {}
