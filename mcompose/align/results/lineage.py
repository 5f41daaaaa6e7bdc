"""Reads a checkpoint together with the results of the stages that were run on it.

A stage writes the tensors that it trained (``delta.safetensors``), the factors that it trained (a PEFT adapter) and a
record (``stage.json``); it does not copy unchanged tensors. ``Lineage`` joins these again, tensor by tensor, for the
next stage and for the export: take the parent's bytes, replace tensors that the delta has, fold the adapter's factors
in, and round once to the parent's dtype.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcompose.anatomy import GROUP, Anatomy, group_part, read_anatomy
from mcompose.checkpoint import (
    ADAPTER_FILE,
    Adapter,
    Checkpoint,
    TensorEntry,
    decode,
    digest_tensor,
    encode,
    open_adapter,
    open_checkpoint,
    read_header,
    read_json_object,
    read_tensor,
)
from mcompose.errors import CheckpointError, NumericsError
from mcompose.ledger import Ledger

__all__ = ["DELTA", "RECORD", "Lineage", "StageResult", "open_lineage", "open_result"]

RECORD = "stage.json"
DELTA = "delta.safetensors"


@dataclass(frozen=True)
class StageResult:
    """Result of one stage, as read from its folder.

    Args:
        folder: Folder of the stage.
        record: Content of ``stage.json``.
        identity: Digest of the record.
        delta: Key to the entry of its new value.
    """

    folder: Path
    record: dict[str, Any]
    identity: str
    delta: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Position of the stage in the recipe, from 1."""
        return int(self.record["stage"])

    @property
    def parent(self) -> Path:
        """Folder of the checkpoint or stage that this stage started from."""
        return (self.folder / self.record["parent"]["path"]).resolve()


@dataclass(frozen=True)
class Lineage:
    """A checkpoint with the stages that were run on it.

    Args:
        root: Full checkpoint.
        results: Results of the stages, in the order in which they were run.
        adapters: Adapter of each stage; None for a stage without one.
        identity: Identity of the last result, or of the root without stages.
    """

    root: Checkpoint
    results: tuple[StageResult, ...]
    adapters: tuple[Adapter | None, ...]
    identity: str

    @property
    def config(self) -> dict[str, Any]:
        """Config of the root, with the fields that stages changed."""
        config = dict(self.root.config)
        for result in self.results:
            config |= result.record.get("config", {})
        return config

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key to shape of every tensor; added tensors come last."""
        shapes = dict(self.root.shapes)
        for result in self.results:
            shapes |= {key: entry.shape for key, entry in result.delta.items()}
        return shapes

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Key to safetensors dtype of every tensor."""
        dtypes = {key: entry.dtype for key, entry in self.root.tensors.items()}
        for result in self.results:
            dtypes |= {key: entry.dtype for key, entry in result.delta.items()}
        return dtypes

    @cached_property
    def changed(self) -> dict[str, int]:
        """Key of each tensor that a stage changed or added, to the number of the last such stage."""
        changed: dict[str, int] = {}
        for result, adapter in zip(self.results, self.adapters, strict=True):
            changed |= dict.fromkeys((*result.delta, *(adapter.folds if adapter else ())), result.number)
        return changed

    @cached_property
    def anatomy(self) -> Anatomy:
        """Anatomy of the whole, decoupled groups last."""
        keys = sorted(self.shapes, key=lambda key: group_part(key).startswith(GROUP))
        return read_anatomy(self.config, {key: self.shapes[key] for key in keys})

    def read(self, key: str) -> NDArray[Any]:
        """Reads a tensor's raw values, in the dtype of ``dtypes``.

        Raises:
            CheckpointError: A file cannot be read.
            NumericsError: Folding an adapter made a value that is not finite.
        """
        raw = read_tensor(self.root.tensors[key]) if key in self.root.tensors else None
        for result, adapter in zip(self.results, self.adapters, strict=True):
            if key in result.delta:
                raw = read_tensor(result.delta[key])
            fold = adapter.fold_for(key) if adapter else None
            if fold is not None and raw is not None:
                values = fold.apply(decode(raw, self.dtypes[key]))
                raw = encode(values, self.dtypes[key])
                if not np.isfinite(decode(raw, self.dtypes[key])).all():
                    raise NumericsError(
                        f"'{key}' overflows {self.dtypes[key]} when the adapter of stage {result.number} is folded in."
                    )
        if raw is None:
            raise CheckpointError(f"'{key}' is not in any file of the checkpoint or its stages.")
        return raw


def open_result(folder: Path) -> StageResult | None:
    """Reads the result of a stage; returns None if the folder does not hold a finished stage.

    Raises:
        CheckpointError: The record or the delta is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    record = read_json_object(path)
    if record.get("format") != 1:
        raise CheckpointError(f"'{path}' has a format that this version does not know.", hint="Update mcompose.")
    delta = {}
    if record["delta"]:
        delta = {entry.key: entry for entry in read_header(folder / DELTA).entries}
        for key, digest in record["delta"].items():
            if key not in delta or digest_tensor(delta[key]) != digest:
                raise CheckpointError(
                    f"'{folder / DELTA}' does not match its record at '{key}'.", hint="Run the stage again."
                )
    identity = hashlib.sha256(path.read_bytes()).hexdigest()
    return StageResult(folder, record, f"stage:{identity}", delta)


def open_lineage(folder: Path) -> Lineage:
    """Opens a checkpoint, or a stage's result with all earlier results and the checkpoint below it.

    Args:
        folder: Folder of a checkpoint or of a stage.

    Raises:
        CheckpointError: It is neither, or the parent of a stage has changed since the stage was run.
    """
    result = open_result(folder)
    if result is None:
        if not folder.is_dir():
            raise CheckpointError(f"The checkpoint '{folder}' does not exist.", hint="Run 'mcompose merge' first.")
        root = open_checkpoint(folder)
        return Lineage(root, (), (), _identity(root))
    parent = open_lineage(result.parent)
    if parent.identity != result.record["parent"]["identity"]:
        raise CheckpointError(
            f"'{result.parent.name}' has changed since stage {result.number} in '{folder}' was run on it.",
            hint="Run the stage again, or restore the checkpoint.",
        )
    adapter = None
    if (folder / ADAPTER_FILE).is_file():
        adapter = open_adapter(folder).bind(_entries(parent))
    results, adapters = (*parent.results, result), (*parent.adapters, adapter)
    return Lineage(parent.root, results, adapters, result.identity)


def _entries(lineage: Lineage) -> dict[str, TensorEntry]:
    entries = dict(lineage.root.tensors)
    for result in lineage.results:
        entries |= result.delta
    return entries


def _identity(root: Checkpoint) -> str:
    """Digests all tensors: from the ledger if it has their digests, else from the files."""
    try:
        ledger = Ledger.read(root.folder)
        digests = {row.name: row.digest for row in ledger.tensors if row.action != "dropped"}
    except CheckpointError:
        digests = {}
    if digests.keys() != root.tensors.keys():
        digests = {key: digest_tensor(entry) for key, entry in root.tensors.items()}
    text = json.dumps([sorted(digests.items()), root.config], sort_keys=True)
    return f"checkpoint:{hashlib.sha256(text.encode()).hexdigest()}"
