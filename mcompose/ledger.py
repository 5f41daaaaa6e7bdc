"""The record of a run: one row for each output tensor, each other file with computed content, and each step.

The ledger is written to ``mcompose/ledger.json`` of every output. The model card, ``mcompose verify`` and
``mcompose diff`` are computed from it, so that the packages that write it and those that read it share a file and do
not import each other.
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
    """Record of one output tensor, or of one source tensor that is not in the output.

    Args:
        name: Key in the output; for a dropped tensor, its key in the source.
        action: ``merged``, ``copied``, ``cast`` (copied in another dtype), ``folded`` (an adapter was added, nothing
            was merged), ``created`` (not from a source), ``trained`` (changed by an alignment stage) or ``dropped``.
        part: ``language``, ``embedding``, ``head``, ``encoder:<source>`` or ``projector:<source>``.
        method: Merge method; empty when the tensor was not merged.
        sources: Names of the sources of the tensor, in the recipe's order.
        weights: Weights of these sources, in the same order; empty when the method does not have weights.
        dtype: safetensors dtype of the output (``BF16``).
        shape: Shape of the output.
        digest: ``xxh3:<hex>`` of the tensor's bytes; empty for a dropped tensor.
        inputs: Digests of the bytes that were read of each input: the sources in order, then the base, then the inputs
            of rows that are made in another way. Empty for copied tensors, whose input bytes are the output's.
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
    """Record of one file that is part of the network but not a tensor: an expert's ONNX graph, or its external data.

    Args:
        name: Path in the output; for a file that is not copied, its name in the source.
        action: ``copied``, or ``dropped`` when the output does not contain it.
        part: ``expert:<name>``.
        sources: Name of the source or expert that it came from.
        sha256: SHA-256 of its content, in hex.
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
    """Record of one source, as it was when it was read.

    Args:
        name: Name in the recipe; ``base`` for the base language model.
        ref: ``hub:org/name@commit`` or ``local:path``.
        model_type: transformers' model type.
        modalities: Modalities that it contributed.
        licence: Licence identifier of its model card; empty when the card does not state one.
        base_model: Base model of its model card; empty when the card does not state one.
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
    """Record of one step of the run.

    Args:
        step: ``merge``, ``align``, ``eval``.
        command: The command as typed, without access tokens and without absolute paths.
        seconds: Wall time, in seconds.
        details: Numbers of the step: threads, bytes, metrics.
    """

    step: str
    command: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Ledger:
    """The complete record of one output.

    Args:
        name: Name of the recipe.
        method: Merge method of the language model.
        method_title: Full name of the method.
        method_paper: Publication of the method (``arXiv:2306.01708``).
        output_format: ``native``, ``composed`` or ``text``.
        modalities: Modalities that the output accepts besides text.
        versions: Versions of mcompose and of the libraries that affect the result.
        sources: One row for each source.
        tensors: One row for each tensor.
        steps: One row for each step.
        files: One row for each other file of the network; empty for most outputs.
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
        """Writes the ledger as JSON with one tensor per line, so that two ledgers can be compared by eye."""
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
                raise CheckpointError(f"The ledger must have format {FORMAT}.", hint="Update mcompose.")
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
            CheckpointError: The folder does not contain a ledger.
        """
        path = folder / LEDGER
        if not path.is_file():
            hint = "Name a folder that 'mcompose merge' wrote."
            raise CheckpointError(f"'{folder}' does not contain {LEDGER}.", hint=hint)
        return cls.from_json(path.read_text(encoding="utf-8"))


_ROW_TYPES: dict[str, type[Any]] = {"sources": SourceRow, "steps": StepRow, "files": FileRow, "tensors": TensorRow}
_OPTIONAL = ("files",)


def _compact(row: Any) -> dict[str, Any]:
    """Returns a row as a dict, without the fields that have their default."""
    return {
        f.name: getattr(row, f.name)
        for f in dataclasses.fields(row)
        if getattr(row, f.name) not in ("", (), 0.0, {}) or f.name in {"name", "action", "step", "shape"}
    }


def _with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Turns the lists of JSON into the tuples of the rows."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def human_bytes(count: int) -> str:
    """Formats a number of bytes in decimal units: ``1.96 GB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"
