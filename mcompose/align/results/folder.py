"""The folder of one stage: begun, resumed, finished; never two runs at once, never anything else's files.

``<output>.stages/<number>/`` holds ``run.json`` (what the run is made of) and ``run/`` (points to go on from) while the
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

__all__ = ["LOG", "PLOT", "POINTS", "begin", "finish", "held", "is_done", "stages_folder"]

LOG = "log.jsonl"
PLOT = "loss.png"
POINTS = "run"
_RUN = "run.json"
_OWN = {_RUN, POINTS, LOG, PLOT, DELTA, ADAPTER_FILE, RECORD, "adapter_config.json", LOCK_NAME}


def stages_folder(checkpoint: Path) -> Path:
    """Returns where the stages of a checkpoint go: beside it."""
    return checkpoint.parent / (checkpoint.name + ".stages")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a stage's folder.

    Raises:
        OutputError: Another run is in it, or it holds something else.
    """
    if folder.is_dir():
        foreign = sorted(
            path.name for path in folder.iterdir() if path.name not in _OWN and not path.name.startswith(".")
        )
        if foreign:
            raise OutputError(
                f"The stage's folder '{folder}' already holds something else: '{foreign[0]}'.",
                hint="Name another folder with -o DIR.",
            )
    lock = FolderLock.take(folder)
    try:
        yield
    finally:
        if folder.is_dir():
            (folder / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


def is_done(folder: Path, fingerprint: str) -> bool:
    """Returns whether a finished result of this very run is there."""
    return (folder / RECORD).is_file() and _read(folder / _RUN).get("fingerprint") == fingerprint


def begin(folder: Path, *, fingerprint: str, resume: bool) -> str:
    """Makes a folder ready, and clears what belongs to another run.

    Args:
        folder: Folder of the stage.
        fingerprint: Fingerprint of this run.
        resume: Whether to go on with an earlier run of the same fingerprint.

    Returns:
        A sentence about what was cleared; empty when nothing was.
    """
    earlier = _read(folder / _RUN).get("fingerprint")
    if resume and earlier == fingerprint:
        return ""
    cleared = False
    for name in sorted(_OWN - {LOCK_NAME}):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
            cleared = True
        elif path.exists():
            path.unlink()
            cleared = True
    write_json(folder / _RUN, {"fingerprint": fingerprint})
    if not cleared:
        return ""
    why = "as asked" if not resume else "another recipe, other data or another checkpoint"
    return f"An earlier run in '{folder.name}' was discarded ({why})."


def finish(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record, which makes the stage's result one, and removes the points."""
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / POINTS, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path) if path.is_file() else {}
    except CheckpointError:
        return {}
