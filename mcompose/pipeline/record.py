"""Records scores in an output: in its ledger, its lock file and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcompose.checkpoint import digest_file, read_json_object
from mcompose.errors import CheckpointError
from mcompose.ledger import Ledger, StepRow
from mcompose.on_disk import FOLDER, LEDGER, LOCK
from mcompose.whole_files import write_bytes, write_json

__all__ = ["record_scores"]

STEP = "eval"


def record_scores(folder: Path, results: Sequence[dict[str, Any]], *, plot: Path | None = None) -> Ledger:
    """Writes scores into an output of ``merge``, in place of those of an earlier evaluation.

    Args:
        folder: The output.
        results: Rows with ``task``, ``metric``, ``value`` and ``n``.
        plot: A PNG for the card.

    Returns:
        The new ledger.

    Raises:
        CheckpointError: The folder holds no ledger or no lock file.
        StorageError: The disk is full or refused a write.
    """
    ledger = Ledger.read(folder)
    kept = tuple(step for step in ledger.steps if step.step != STEP)
    step = StepRow(STEP, "mcompose eval", details={"results": list(results)})
    ledger = replace(ledger, steps=(*kept, step))
    files = {LEDGER: ledger.to_json().encode()}
    if plot is not None:
        files[f"{FOLDER}/scores.png"] = plot.read_bytes()
    lock_path = folder / LOCK
    if not lock_path.is_file():
        raise CheckpointError(f"'{folder}' has no {LOCK}.", hint="Was it written by 'mcompose merge'?")
    lock = read_json_object(lock_path)
    for name, content in files.items():
        write_bytes(folder / name, content)
        lock["files"][name] = vars(digest_file(folder / name))
    write_json(lock_path, lock)
    from mcompose.publish import write_card  # noqa: PLC0415 - the Hub's library, for the card only

    write_card(ledger, folder, None)
    return ledger
