"""A domain expert of an output, as it was decided: its entry in the config, its tensors and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint, ExpertFile
    from mcompose.merge import Dropped, TensorJob
    from mcompose.recipe import Expert

__all__ = ["NewExpert", "OutputExpert"]


@dataclass(frozen=True)
class NewExpert:
    """What only an expert has that this recipe brings.

    Args:
        spec: What the recipe says.
        checkpoint: Of its encoder.
    """

    spec: Expert
    checkpoint: Checkpoint


@dataclass(frozen=True)
class OutputExpert:
    """One expert of a composed output.

    Args:
        name: Its name.
        entry: Its entry in the network's config.
        summary: What the processor's config says of it.
        processor_folder: Where the files of its processor are.
        jobs: Its tensors.
        dropped: What of its checkpoint no output holds.
        new: For an expert that the recipe brings.
        files: Of an ONNX encoder: what is copied into the output.
        left: Of an ONNX encoder that is kept by reference: its files, as they are called there.
        source: The composed source that has it; empty for a new one.
        note: A sentence for the user.
    """

    name: str
    entry: Mapping[str, Any]
    summary: Mapping[str, Any]
    processor_folder: Path
    jobs: tuple[TensorJob, ...]
    dropped: tuple[Dropped, ...] = ()
    new: NewExpert | None = None
    files: tuple[ExpertFile, ...] = ()
    left: tuple[ExpertFile, ...] = ()
    source: str = ""
    note: str = ""

    @property
    def modality(self) -> str:
        """Beside whose items it stands."""
        return self.entry["modality"]
