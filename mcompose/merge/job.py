"""What a merge is, as frozen values: one job per output tensor, and the plan that holds them all.

A job says where every row of its output comes from, so that the engine needs nothing else: a plan can be printed,
compared, resumed and run on another day. It is made from headers alone (``merge.plan``) and run by ``merge.execute``.
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
"""What can happen to the rows of a tensor; a tensor of several segments is called by the first that applies."""


@dataclass(frozen=True)
class Contribution:
    """One source's tensor, as one of the inputs of a segment.

    Args:
        source: Name of the source.
        entry: Where its bytes lie.
        low_rank: Adapter of the source for this tensor, added exactly in float32 before anything else.
        first_row: Row of the source's tensor that meets the first row of the segment; None for the same row.
    """

    source: str
    entry: TensorEntry
    low_rank: LowRank | None = None
    first_row: int | None = None


@dataclass(frozen=True)
class Segment:
    """Rows ``[start, stop)`` of the output's first dimension, and how they come about.

    Args:
        start: First row. A tensor without rows (a scalar) has one segment ``[0, 1)``.
        stop: Row after the last.
        action: One of ``ACTIONS``. ``created`` rows are zeros, or what their parameters say (``first_values``);
            ``copied`` rows with several contributions must hold the same bits in all of them.
        contributions: The inputs, in the recipe's order.
        base: The base language model's tensor, where the method uses it.
        method: Name of the merge method; empty unless ``merged``.
        weights: One weight a contribution; empty unless ``merged``.
        parameters: Parameter name to value, or to a tuple with one value a contribution.
        seed: The recipe's seed.
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
        """Everything that is read: the contributions, then the base."""
        return self.contributions if self.base is None else (*self.contributions, self.base)


@dataclass(frozen=True)
class TensorJob:
    """One output tensor.

    Args:
        name: Key in the output's files.
        part: ``language``, ``embedding``, ``head``, ``encoder:<source>`` or ``projector:<source>``.
        layer: Index of the output's decoder layer; None outside the layers.
        dtype: safetensors dtype of the output.
        shape: Shape of the output.
        segments: In the order of the rows, without gaps.
        note: For the ledger: rows copied, adapter folded.
        address: What addresses the randomness of this tensor; the same for every output format. Default: the name.
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
        """Elements in one row."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the output."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def action(self) -> str:
        """The first of ``ACTIONS`` that any segment takes."""
        taken = [segment.action for segment in self.segments]
        return next((action for action in ACTIONS if action in taken), "created")

    def shape_of(self, segment: Segment) -> tuple[int, ...]:
        """Shape of one of its segments."""
        return (segment.stop - segment.start, *self.shape[1:]) if self.shape else ()

    def ledger_row(self, digest: str, *, inputs: tuple[str, ...] = ()) -> TensorRow:
        """The row of this tensor in the ledger.

        Args:
            digest: ``xxh3:<hex>`` of the written bytes.
            inputs: The same of the bytes that were read.
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
    """One source tensor, or some of its rows, that no output holds.

    Args:
        source: Name of the source.
        key: Key in the source's files.
        part: As in a job.
        reason: Why, for the ledger.
    """

    source: str
    key: str
    part: str
    reason: str

    def ledger_row(self) -> TensorRow:
        """The row of this tensor in the ledger."""
        return TensorRow(name=self.key, action="dropped", part=self.part, sources=(self.source,), note=self.reason)


@dataclass(frozen=True)
class MergePlan:
    """Everything that a merge will do, known before the first weight is read.

    Args:
        jobs: In the order of the output's files.
        dropped: What the output will not hold.
        layout: Shards, headers and offsets of the output.
        bytes_to_read: Bytes of all inputs, each counted once; a method that measures first reads them again.
        bytes_to_write: Bytes of the output's tensors.
        peak_memory: Estimate of the peak resident memory, for ``threads`` threads.
        threads: Threads that the estimate counts.
        fingerprint: Digest of everything that decides the bytes of the output.
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
        """The plan for ``--json``: figures first, then one short entry per job."""
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
    """Digest of everything that decides the bytes of the output, and of no path.

    Args:
        jobs: The jobs in output order.
        layout: The output's own structure as text (one header per shard).
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
    """Name, size and time of a file: enough to notice that it was replaced, at no cost."""
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
