"""``import``: a released donor of Model Composition becomes a composed checkpoint that recipes can name."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.compose import ImportRequest, import_released
from mcompose.errors import CheckpointError
from mcompose.ledger import Ledger

if TYPE_CHECKING:
    from mcompose.refs import ModelRef

__all__ = ["ImportReport", "import_donor"]


@dataclass(frozen=True)
class ImportReport:
    """What was written.

    Args:
        folder: The checkpoint.
        modalities: Modalities that it takes beside text.
        parts: Part to the number of its tensors and parameters.
    """

    folder: Path
    modalities: tuple[str, ...]
    parts: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        return {"output": str(self.folder), "modalities": list(self.modalities), "parts": self.parts}

    def to_text(self) -> str:
        """Returns the report as text."""
        width = max(map(len, self.parts), default=0)
        lines = [
            f"  {part:<{width}}  {size['parameters']:,} in {size['tensors']} tensors"
            for part, size in self.parts.items()
        ]
        use = f"  in a recipe: sources: [{{name: NAME, model: 'local:{self.folder}'}}], compose: {{decouple: donor}}"
        return "\n".join([str(self.folder), *lines, use])


def import_donor(
    donor: Path, *, base: ModelRef, encoder: ModelRef, output: Path, alpha: float | None = None
) -> ImportReport:
    """Writes a released donor as a composed checkpoint.

    Args:
        donor: Folder of the donor, converted to safetensors.
        base: The language model that it was trained on.
        encoder: Checkpoint of its encoder.
        output: Folder to write.
        alpha: LoRA's alpha, where the donor's config does not say it.

    Returns:
        The report.

    Raises:
        McomposeError: A file cannot be read, or donor, base and encoder do not fit together.
    """
    if not donor.is_dir():
        raise CheckpointError(
            f"The folder '{donor}' does not exist.",
            hint="A donor is a folder here: `hf download ORG/NAME --local-dir DIR`.",
        )
    folder = import_released(ImportRequest(donor, base=base, encoder=encoder, output=output, alpha=alpha))
    ledger = Ledger.read(folder)
    parts: dict[str, dict[str, int]] = {}
    for row in ledger.tensors:
        size = parts.setdefault(row.part, {"tensors": 0, "parameters": 0})
        size["tensors"] += 1
        size["parameters"] += prod(row.shape)
    return ImportReport(output, ledger.modalities, parts)
