"""A domain expert of an output, as it was decided: its entry in the config, its tensors and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import EXPERT
from mcompose.compose.provenance import portable_ref
from mcompose.ledger import FileRow, SourceRow, human_bytes

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint, ExpertFile
    from mcompose.merge import Dropped, TensorJob
    from mcompose.recipe import Expert

__all__ = ["NewExpert", "OutputExpert"]


@dataclass(frozen=True)
class NewExpert:
    """What only an expert has that this recipe brings.

    Args:
        spec: The expert's entry in the recipe.
        checkpoint: Checkpoint of its encoder.
    """

    spec: Expert
    checkpoint: Checkpoint


@dataclass(frozen=True)
class OutputExpert:
    """One expert of a composed output.

    Args:
        name: Name of the expert.
        entry: Entry in the network's config.
        summary: Entry in the processor's config.
        processor_folder: Folder with the files of its processor.
        jobs: Jobs of its tensors.
        dropped: Tensors of its checkpoint that the output does not hold.
        new: For an expert that the recipe brings.
        files: Files of an ONNX encoder: what is copied into the output.
        left: Left of an ONNX encoder that is kept by reference: its files, as they are called there.
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
        """Modality whose items it reads."""
        return self.entry["modality"]

    def source_row(self) -> SourceRow:
        """Row of the ledger about the checkpoint of a new expert."""
        assert self.new is not None, "carried experts belong to their source"
        checkpoint = self.new.checkpoint
        return SourceRow(
            name=self.name,
            ref=portable_ref(checkpoint.ref),
            model_type=checkpoint.model_type or ("onnx" if "onnx" in self.entry else ""),
            modalities=(self.modality,),
            licence=checkpoint.licence,
            base_model=checkpoint.base_model,
            commit=checkpoint.commit or "",
        )

    def file_rows(self) -> Iterator[FileRow]:
        """Yields rows of the ledger about an ONNX expert's files: those in the output, and those left elsewhere."""
        part, sources = f"{EXPERT}:{self.name}", (self.source or self.name,)
        for file in self.files:
            note = f"was '{file.path.relative_to(self.new.checkpoint.folder).as_posix()}'" if self.new else ""
            yield FileRow(file.name, "copied", part, sources, file.sha256, note)
        for file in self.left:
            yield FileRow(file.name, "dropped", part, sources, file.sha256, "kept by reference")

    def report(self) -> dict[str, Any]:
        """Returns what ``plan --json`` says of it; ``tokens`` of one item, None where the item decides."""
        entry = self.entry
        facts = {
            "encoder": self._encoder,
            "modality": entry["modality"],
            "domain": entry["domain"],
            "tokens": entry["tokens"] if isinstance(entry["tokens"], int) else None,
            "store": "reference" if entry.get("reference") else "inside",
        }
        return facts | ({"files": {f.name: f.path.stat().st_size for f in self.files}} if self.files else {})

    def report_text(self) -> str:
        """Returns the same in words."""
        facts = self.report()
        copies = f", copies {human_bytes(sum(facts['files'].values()))}" if "files" in facts else ""
        return f"'{self.name}' ({self._encoder}, {facts['tokens'] or 'varying'} tokens an item{copies})"

    @property
    def _encoder(self) -> str:
        return f"ONNX value '{self.entry['onnx']['output']}'" if "onnx" in self.entry else self.entry["class_name"]
