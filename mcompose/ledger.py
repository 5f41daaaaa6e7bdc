"""What happened, as plain values: one row per output tensor, one per file beside them, one row per step.

The ledger is written to ``mcompose/ledger.json`` of every output. The model card, ``mcompose verify`` and
``mcompose diff`` are functions of it, so that the rooms that write and the rooms that read meet in a file and never
in an import.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcompose.errors import CheckpointError
from mcompose.on_disk import LEDGER

__all__ = ["FORMAT", "FileRow", "Ledger", "SourceRow", "StepRow", "TensorRow", "human_bytes"]

FORMAT = 1


@dataclass(frozen=True)
class TensorRow:
    """One output tensor, or one source tensor that no output holds.

    Args:
        name: Key in the output; for a dropped tensor, its key in the source.
        action: ``merged``, ``copied``, ``cast`` (copied in another dtype), ``folded`` (an adapter added, nothing
            merged), ``created`` (made from no source), ``trained`` (changed by an alignment stage) or ``dropped``.
        part: ``language``, ``embedding``, ``head``, ``encoder:<source>`` or ``projector:<source>``.
        method: Merge method; empty when nothing was merged.
        sources: Names of the sources that took part, in the recipe's order.
        weights: Their weights, in the same order; empty when the method has none.
        dtype: safetensors dtype of the output (``BF16``).
        shape: Shape of the output.
        digest: ``xxh3:<hex>`` of the tensor's bytes; empty for a dropped tensor.
        inputs: The same of the bytes that each input gave: the sources in order, then the base; rows that come about in
            another way follow with theirs. None for rows that were only copied, whose bytes are the output's.
        note: Reason or remark: rows copied, why dropped, adapter folded.
    """

    name: str
    action: str
    part: str = ""
    method: str = ""
    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()
    digest: str = ""
    inputs: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class FileRow:
    """One file that computes like tensors and is none: the ONNX graph of a domain expert, or its external data.

    Args:
        name: File of the output; for one that is left where it is, its name there.
        action: ``copied``, or ``dropped``: in no output.
        part: ``expert:<name>``.
        sources: The source or expert that it came from.
        sha256: Of its content, in hex.
        note: Reason or remark.
    """

    name: str
    action: str
    part: str = ""
    sources: tuple[str, ...] = ()
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class SourceRow:
    """One source, as it was when it was read.

    Args:
        name: Name in the recipe; ``base`` for the base language model.
        ref: ``hub:org/name@commit`` or ``local:path``.
        model_type: transformers' model type.
        modalities: What it contributed.
        licence: Licence identifier of its model card; empty when it states none.
        base_model: Base model of its model card; empty when it states none.
        commit: Commit of a Hub source.
    """

    name: str
    ref: str
    model_type: str = ""
    modalities: tuple[str, ...] = ()
    licence: str = ""
    base_model: str = ""
    commit: str = ""


@dataclass(frozen=True)
class StepRow:
    """One step of the run.

    Args:
        step: ``merge``, ``align``, ``eval``.
        command: The command as typed, without tokens and without absolute paths.
        seconds: Wall time.
        details: Figures of the step: threads, bytes, metrics.
    """

    step: str
    command: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Ledger:
    """The whole record of one output.

    Args:
        name: Name of the recipe.
        method: Merge method of the language model.
        method_title: Its full name.
        method_paper: Where it was published (``arXiv:2306.01708``).
        output_format: ``native``, ``composed`` or ``text``.
        modalities: What the output takes beside text.
        versions: Versions of mcompose and the libraries that shaped the result.
        sources: One row per source.
        tensors: One row per tensor.
        steps: One row per step.
        files: One row per file that computes; most outputs have none.
    """

    name: str
    method: str
    method_title: str = ""
    method_paper: str = ""
    output_format: str = ""
    modalities: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict[str, str])
    sources: tuple[SourceRow, ...] = ()
    tensors: tuple[TensorRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    files: tuple[FileRow, ...] = ()

    def to_json(self) -> str:
        """The ledger as JSON, one tensor a line, so that two ledgers can be compared by eye."""
        head = {key: value for key, value in dataclasses.asdict(self).items() if key not in _ROW_TYPES}
        lines = [f' "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
        for key in _ROW_TYPES:
            if key in _OPTIONAL and not getattr(self, key):
                continue
            rows = [json.dumps(_compact(row), ensure_ascii=False) for row in getattr(self, key)]
            lines.append(f' "{key}": [' + ",".join(f"\n  {row}" for row in rows) + ("\n ]" if rows else "]"))
        return "{\n" + ",\n".join([f' "format": {FORMAT}', *lines]) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Reads what ``to_json`` wrote.

        Raises:
            CheckpointError: The text is not a ledger of this format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise CheckpointError("The ledger is of another format.", hint="Update mcompose.")
            for key, row_type in _ROW_TYPES.items():
                if key in _OPTIONAL and key not in data:
                    continue
                data[key] = tuple(row_type(**_with_tuples(row)) for row in data[key])
            return cls(**_with_tuples(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"The ledger cannot be read: {error}.") from error

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """Reads the ledger of an output folder.

        Raises:
            CheckpointError: The folder holds no ledger.
        """
        path = folder / LEDGER
        if not path.is_file():
            raise CheckpointError(f"'{folder}' holds no {LEDGER}.", hint="Was it written by 'mcompose merge'?")
        return cls.from_json(path.read_text(encoding="utf-8"))


_ROW_TYPES: dict[str, type[Any]] = {"sources": SourceRow, "steps": StepRow, "files": FileRow, "tensors": TensorRow}
_OPTIONAL = ("files",)


def _compact(row: Any) -> dict[str, Any]:
    """A row without the fields that hold their default."""
    return {
        f.name: getattr(row, f.name)
        for f in dataclasses.fields(row)
        if getattr(row, f.name) not in ("", (), 0.0, {}) or f.name in {"name", "action", "step", "shape"}
    }


def _with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only; the rows hold tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def human_bytes(count: int) -> str:
    """Bytes in decimal units: ``1.96 GB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"
