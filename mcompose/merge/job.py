"""A merge as frozen values: one job for each output tensor, and the plan with all jobs.

A job states where every row of its output comes from, so that the engine needs nothing else: a plan can be printed,
compared, and run or resumed later. It is made from headers only (``merge.plan``) and run by ``merge.execute``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint import DTYPE_BITS, TensorEntry
from mcompose.ledger import TensorRow

if TYPE_CHECKING:
    from mcompose.checkpoint import Layout, LowRank

__all__ = ["ACTIONS", "Contribution", "Dropped", "MergePlan", "Segment", "TensorJob", "fingerprint_of"]

ACTIONS = ("merged", "folded", "cast", "copied", "created")
"""Actions on the rows of a tensor; a tensor with several segments is listed with the first action that occurs."""


@dataclass(frozen=True)
class Contribution:
    """Tensor of one source, as an input of a segment.

    Args:
        source: Name of the source.
        entry: Location of its bytes.
        low_rank: Adapter of the source for this tensor, added in float32 before the merge.
        first_row: Row of the source's tensor for the first row of the segment; None for the same row.
    """

    source: str
    entry: TensorEntry
    low_rank: LowRank | None = None
    first_row: int | None = None


@dataclass(frozen=True)
class Segment:
    """Rows ``[start, stop)`` of the output's first dimension, and how they are made.

    Args:
        start: First row. A scalar has one segment ``[0, 1)``.
        stop: Row after the last.
        action: One of ``ACTIONS``. ``created`` rows are zeros, or as their parameters define (``initial_values``);
            ``copied`` rows with several contributions must have the same bits in all of them.
        contributions: The inputs, in the recipe's order.
        base: Tensor of the base language model, where the method uses it.
        method: Name of the merge method; empty unless ``merged``.
        weights: One weight for each contribution; empty unless ``merged``.
        parameters: Parameter name to value, or to a tuple with one value for each contribution.
        seed: Seed of the recipe.
    """

    start: int
    stop: int
    action: str
    contributions: tuple[Contribution, ...] = ()
    base: Contribution | None = None
    method: str = ""
    weights: tuple[float, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0

    @property
    def inputs(self) -> tuple[Contribution, ...]:
        """All inputs: the contributions, then the base."""
        return self.contributions if self.base is None else (*self.contributions, self.base)


@dataclass(frozen=True)
class TensorJob:
    """Job of one output tensor.

    Args:
        name: Key in the output's files.
        part: ``language``, ``embedding``, ``head``, ``encoder:<source>`` or ``projector:<source>``.
        layer: Index of the output's decoder layer; None outside the layers.
        dtype: safetensors dtype of the output.
        shape: Shape of the output.
        segments: Segments in the order of the rows, without gaps.
        note: Remark for the ledger: rows copied, adapter folded.
        address: Name that random numbers of this tensor depend on, the same for every output format. Default: the
            name.
    """

    name: str
    part: str
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    note: str = ""
    address: str = ""

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_elements(self) -> int:
        """Number of elements in one row."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of the output, in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def action(self) -> str:
        """The first of ``ACTIONS`` that a segment has."""
        actions = [segment.action for segment in self.segments]
        return next((action for action in ACTIONS if action in actions), "created")

    def shape_of(self, segment: Segment) -> tuple[int, ...]:
        """Returns the shape of one of its segments."""
        return (segment.stop - segment.start, *self.shape[1:]) if self.shape else ()

    def ledger_row(self, digest: str, *, inputs: tuple[str, ...] = ()) -> TensorRow:
        """Returns the row of this tensor in the ledger.

        Args:
            digest: ``xxh3:<hex>`` of the written bytes.
            inputs: Digests of the read bytes, one for each input.
        """
        main = next((s for s in self.segments if s.action == self.action), None)
        return TensorRow(
            name=self.name,
            action=self.action,
            part=self.part,
            method=main.method if main else "",
            sources=tuple(c.source for c in main.contributions) if main else (),
            weights=main.weights if main else (),
            dtype=self.dtype,
            shape=self.shape,
            digest=digest,
            inputs=inputs,
            note=self.note,
        )


@dataclass(frozen=True)
class Dropped:
    """One source tensor, or some of its rows, that is not in the output.

    Args:
        source: Name of the source.
        key: Key in the source's files.
        part: Part of the model, as in a job.
        reason: Reason, for the ledger.
    """

    source: str
    key: str
    part: str
    reason: str

    def ledger_row(self) -> TensorRow:
        """Returns the row of this tensor in the ledger."""
        return TensorRow(name=self.key, action="dropped", part=self.part, sources=(self.source,), note=self.reason)


@dataclass(frozen=True)
class MergePlan:
    """Plan of a merge, complete before the first weight is read.

    Args:
        jobs: Jobs in the order of the output's files.
        dropped: Source tensors that are not in the output.
        layout: Shards, headers and offsets of the output.
        bytes_to_read: Bytes of all inputs, each counted once; a method that measures first reads them again.
        bytes_to_write: Bytes of the output's tensors.
        peak_memory: Estimated peak resident memory with ``threads`` threads, in bytes.
        threads: Number of threads of the estimate.
        fingerprint: Digest of everything that the bytes of the output depend on.
        warnings: Sentences for the user.
    """

    jobs: tuple[TensorJob, ...]
    dropped: tuple[Dropped, ...]
    layout: Layout
    bytes_to_read: int
    bytes_to_write: int
    peak_memory: int
    threads: int
    fingerprint: str
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan for ``--json``: numbers first, then one short entry for each job."""
        return {
            "fingerprint": self.fingerprint,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "peak_memory": self.peak_memory,
            "threads": self.threads,
            "actions": _count(job.action for job in self.jobs),
            "warnings": list(self.warnings),
            "jobs": [_job_for_print(job) for job in self.jobs],
            "dropped": [vars(entry) for entry in self.dropped],
        }


def fingerprint_of(jobs: Iterable[TensorJob], *, layout: Iterable[str], version: str) -> str:
    """Computes the digest of everything that the bytes of the output depend on, without paths.

    Args:
        jobs: The jobs in output order.
        layout: Structure of the output as text (one header for each shard).
        version: Version of mcompose.

    Returns:
        ``sha256:<hex>``.
    """
    digest = hashlib.sha256(version.encode())
    files: dict[Path, str] = {}
    for job in jobs:
        digest.update(repr((job.name, job.dtype, job.shape, job.address)).encode())
        for segment in job.segments:
            digest.update(_segment_text(segment, files).encode())
    for text in layout:
        digest.update(text.encode())
    return f"sha256:{digest.hexdigest()}"


def _segment_text(segment: Segment, files: dict[Path, str]) -> str:
    inputs = [
        (c.source, c.first_row, _entry_text(c.entry, files), _low_rank_text(c.low_rank, files)) for c in segment.inputs
    ]
    settings = (segment.method, segment.weights, sorted(segment.parameters.items()), segment.seed)
    return repr((segment.start, segment.stop, segment.action, segment.base is None, settings, inputs))


def _entry_text(entry: TensorEntry, files: dict[Path, str]) -> str:
    return repr((entry.key, entry.dtype, entry.shape, entry.offset, entry.nbytes, _identity(entry.file, files)))


def _identity(file: Path, files: dict[Path, str]) -> str:
    """Returns name, size and modification time of a file: a cheap way to notice that it was replaced."""
    known = files.get(file)
    if known is None:
        try:
            stat = file.stat()
            known = f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
        except FileNotFoundError:
            known = f"{file.name}:absent"
        files[file] = known
    return known


def _low_rank_text(low_rank: LowRank | None, files: dict[Path, str]) -> str:
    if low_rank is None:
        return ""
    values = (getattr(low_rank, f.name) for f in fields(low_rank))
    return repr([_entry_text(v, files) if isinstance(v, TensorEntry) else v for v in values])


def _count(actions: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for action in actions:
        counts[action] = counts.get(action, 0) + 1
    return counts


def _job_for_print(job: TensorJob) -> dict[str, Any]:
    row = job.ledger_row("")
    entry: dict[str, Any] = {
        "name": job.name,
        "action": row.action,
        "part": job.part,
        "dtype": job.dtype,
        "shape": list(job.shape),
        "sources": list(row.sources),
    }
    optional = {"layer": job.layer, "method": row.method, "weights": list(row.weights), "note": job.note}
    parameters = next((dict(s.parameters) for s in job.segments if s.parameters), {})
    entry.update({key: value for key, value in optional.items() if value not in (None, "", [])})
    return entry | ({"parameters": json.loads(json.dumps(parameters))} if parameters else {})
