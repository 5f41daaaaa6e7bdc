"""``diff`` and ``verify``: the steps that compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mcompose.checkpoint import open_checkpoint
from mcompose.compose import open_parts
from mcompose.errors import AnatomyError
from mcompose.merge import diff as diff_checkpoints
from mcompose.merge import verify as verify_folder
from mcompose.refs import ModelRef

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy
    from mcompose.checkpoint import Checkpoint
    from mcompose.merge import DiffReport, VerifyReport

__all__ = ["diff", "verify"]


def diff(a: ModelRef, b: ModelRef) -> DiffReport:
    """Tells where two checkpoints differ, per part and layer.

    Args:
        a: One checkpoint.
        b: The other.

    Returns:
        The report. Tensors are compared name by name when the parts of both can be told apart, key by key otherwise.

    Raises:
        CheckpointError: One cannot be read.
    """
    (first, first_anatomy), (second, second_anatomy) = _opened(a), _opened(b)
    return diff_checkpoints(first, second, anatomy_a=first_anatomy, anatomy_b=second_anatomy)


def _opened(ref: ModelRef) -> tuple[Checkpoint, Anatomy | None]:
    try:
        parts = open_parts(ref, name=str(ref), relative_to=Path(), weights=True)
    except AnatomyError:
        return open_checkpoint(ref), None
    return parts.checkpoint, parts.anatomy


def verify(folder: Path) -> VerifyReport:
    """Checks every file of an output against its lock file and ledger.

    Args:
        folder: An output of ``merge``.

    Returns:
        The report.

    Raises:
        CheckpointError: The folder holds no ledger.
    """
    return verify_folder(folder)
