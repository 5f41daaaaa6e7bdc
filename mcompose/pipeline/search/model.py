"""The model of a search: loaded once, merged anew in place for every trial.

Only the language model depends on what is searched. So the recipe is composed once on disk and loaded; a trial plans
its merge from the open headers, and the jobs whose inputs or settings differ from what is in memory are run by the
engine itself, whose writes land in the model's own parameters. The bytes are those that ``mcompose merge`` would
write, and their digests say so.

Where a parameter cannot be found again (transformers fused or converted it on loading), the same writes go into the
files of a copy of the scratch checkpoint, which is then loaded again: dearer by one loading a trial.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mcompose.checkpoint import TensorFiles, open_checkpoint
from mcompose.compose import draw_blueprint, open_sources
from mcompose.dtypes import FLOAT_NAMES
from mcompose.evaluate import EvaluatedModel, load_evaluated_model
from mcompose.ledger import Ledger, TensorRow
from mcompose.merge import MergePlan, Segment, TensorJob, build_plan, execute, find_method
from mcompose.part_names import LANGUAGE_PARTS
from mcompose.pipeline.search.space import Settings, applied
from mcompose.refs import ModelRef

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcompose.checkpoint import JournalRow, Layout, TensorEntry
    from mcompose.recipe import LoadedRecipe

__all__ = ["TrialModel", "digest_of", "varying_jobs"]

DTYPES = {code: getattr(torch, name) for code, name in FLOAT_NAMES.items()}
ONE_FILE = 1 << 62
"""Shard size of plans that are never laid out on disk."""


def digest_of(rows: Iterable[TensorRow]) -> str:
    """Names the weights of a checkpoint.

    Args:
        rows: Rows of its ledger.

    Returns:
        32 hexadecimal digits of the digests of all tensors that it holds.
    """
    return _digest({row.name: row.digest for row in rows if row.action != "dropped"})


def _digest(tensors: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {tensors[name]}" for name in sorted(tensors))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def varying_jobs(plan: MergePlan, known: Mapping[str, tuple[Segment, ...]]) -> list[TensorJob]:
    """Returns the jobs whose output differs from the known state.

    Args:
        plan: The merge.
        known: Tensor to the segments that made it.

    Returns:
        The jobs. A method that looks at the whole model gets all of its tensors again when one differs.
    """
    changed = {job.name for job in plan.jobs if known.get(job.name) != job.segments}
    if any(_looks_at_all(job) for job in plan.jobs if job.name in changed):
        changed |= {job.name for job in plan.jobs if _looks_at_all(job)}
    return [job for job in plan.jobs if job.name in changed]


def _looks_at_all(job: TensorJob) -> bool:
    return any(s.action == "merged" and find_method(s.method).whole_model for s in job.segments)


class TrialModel:
    """A composed model whose weights follow the trials.

    Args:
        loaded: The recipe.
        scratch: Folder of the composition, made by ``compose``.
        threads: For merging; None for one per core.
        trust_remote_code: Whether code that the checkpoint ships may run.
        in_place: False to reload the model for every trial.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        scratch: Path,
        *,
        threads: int | None = None,
        trust_remote_code: bool = False,
        in_place: bool = True,
    ) -> None:
        self._loaded, self._scratch, self._threads, self._trust = loaded, scratch, threads, trust_remote_code
        self._sources = open_sources(loaded, weights=True)
        self._subject: EvaluatedModel | None = load_evaluated_model(scratch, trust_remote_code=trust_remote_code)
        self._parameters: dict[str, torch.Tensor] | None = None
        plan = self._begin()
        if in_place:
            jobs = [job for job in plan.jobs if job.part in LANGUAGE_PARTS or job.action == "merged"]
            self._parameters = find_parameters(self._subject.model, jobs, scratch)
        if self._parameters is None:
            self._leave_memory()

    def _begin(self) -> MergePlan:
        """Takes the state of the scratch checkpoint as the known one."""
        plan = draw_blueprint(self._loaded, self._sources).plan
        rows = Ledger.read(self._scratch).tensors
        self._layout = plan.layout
        self._segments: dict[str, tuple[Segment, ...]] = {job.name: job.segments for job in plan.jobs}
        self._digests = {row.name: row.digest for row in rows if row.action != "dropped"}
        return plan

    def _leave_memory(self) -> None:
        """Writes trials into a copy of the scratch checkpoint from now on, since other processes may read it."""
        copy = self._scratch.with_name(f"{self._scratch.name}-{os.getpid()}")
        shutil.copytree(self._scratch, copy, dirs_exist_ok=True)
        self._scratch, self._parameters, self._subject = copy, None, None
        self._begin()

    @property
    def subject(self) -> EvaluatedModel:
        """Returns the model, loaded."""
        if self._subject is None:
            self._subject = load_evaluated_model(self._scratch, trust_remote_code=self._trust)
        return self._subject

    @property
    def in_place(self) -> bool:
        """Returns whether trials are merged into the loaded model directly."""
        return self._parameters is not None

    def merge(self, settings: Settings) -> str:
        """Makes the model what a merge with these settings would give.

        Args:
            settings: Settings of the trial.

        Returns:
            The digest of all weights, as ``digest_of`` computes it from the ledger of ``mcompose merge``.

        Raises:
            NumericsError: The result is not finite.
            RequestError: The method refuses the settings.
        """
        plan = draw_blueprint(applied(self._loaded, settings), self._sources).plan
        jobs = varying_jobs(plan, self._segments)
        if self._parameters is not None and any(job.name not in self._parameters for job in jobs):
            self._leave_memory()
            jobs = varying_jobs(plan, self._segments)
        for job in jobs:
            self._segments.pop(job.name, None)  # half-written, should this be cut off: made anew next time
        part = build_plan(jobs, [], max_shard_size=ONE_FILE, metadata={})
        sink = self._sink(jobs)
        try:
            execute(part, sink, threads=self._threads)
        finally:
            sink.close()
        self._digests |= sink.digests
        self._segments |= {job.name: job.segments for job in jobs}
        return _digest(self._digests)

    def _sink(self, jobs: Sequence[TensorJob]) -> _TrialSink:
        """Returns where a trial is written: the model, or the scratch files after the model is dropped."""
        if self._parameters is not None:
            return _InModel(self._parameters, {job.name: job.dtype for job in jobs})
        self._subject = None
        gc.collect()
        return _InFiles(self._scratch, self._layout)


def find_parameters(model: torch.nn.Module, jobs: Sequence[TensorJob], folder: Path) -> dict[str, torch.Tensor] | None:
    """Finds the parameter of every tensor of the language model.

    Args:
        model: The loaded model.
        jobs: The tensors.
        folder: Folder that it was loaded from.

    Returns:
        Key in the files to parameter; None when one is not found again, by its name and by its very values.
    """
    named = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    entries = open_checkpoint(ModelRef("local", str(folder.resolve()))).tensors
    found: dict[str, torch.Tensor] = {}
    with TensorFiles() as files:
        for job in jobs:
            stored = _stored(files, entries[job.name])
            parameter = None if stored is None else _parameter(named, job, stored)
            if parameter is None:
                return None
            found[job.name] = parameter
    return found


def _stored(files: TensorFiles, entry: TensorEntry) -> torch.Tensor | None:
    if entry.dtype not in DTYPES:
        return None
    values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    files.read_into(entry, _bytes(values).data)
    return values


def _parameter(named: Mapping[str, torch.Tensor], job: TensorJob, stored: torch.Tensor) -> torch.Tensor | None:
    tail = job.address or job.name
    names = [job.name] if job.name in named else [n for n in named if n == tail or n.endswith(f".{tail}")]
    fitting = {named[n].data_ptr(): named[n] for n in names if named[n].shape == stored.shape}
    alike = [p for p in fitting.values() if p.is_contiguous() and torch.equal(p.detach().cpu(), stored.to(p.dtype))]
    return alike[0].detach() if len(alike) == 1 else None


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """Returns the memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


class _TrialSink(ABC):
    """A ``TensorSink`` of whole tensors: remembers where the layout has every tensor, and passes its bytes on."""

    partial = "the loaded model"

    def __init__(self) -> None:
        self._places: dict[str, tuple[list[int], list[str]]] = {}
        self.digests: dict[str, str] = {}

    def allocate(self, layout: Layout) -> Mapping[str, JournalRow]:
        """Notes where the layout has every tensor; nothing is finished yet."""
        for shard in layout.shards:
            pairs = sorted((offset, name) for name, offset in shard.offsets.items() if shard.lengths[name])
            self._places[shard.filename] = [offset for offset, _ in pairs], [name for _, name in pairs]
        return {}

    def pwrite_all(self, shard: str, offset: int, data: memoryview) -> None:
        """Writes bytes of one tensor; any thread."""
        starts, names = self._places[shard]
        index = bisect_right(starts, offset) - 1
        self.write(names[index], offset - starts[index], data)

    def record(self, name: str, *, digest: str, row: Mapping[str, Any] | None = None) -> None:
        """Notes that a tensor is complete."""
        del row  # nothing is resumed
        self.digests[name] = digest

    @abstractmethod
    def write(self, name: str, start: int, data: memoryview) -> None:
        """Writes bytes from ``start`` of a tensor on."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what is open."""


class _InModel(_TrialSink):
    """Writes into parameters; by way of a buffer where dtype or device differ from the file's.

    Args:
        parameters: Key to parameter.
        dtypes: Key to safetensors dtype.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], dtypes: Mapping[str, str]) -> None:
        super().__init__()
        self._parameters, self._dtypes = parameters, dtypes
        self._buffers: dict[str, torch.Tensor] = {}

    def write(self, name: str, start: int, data: memoryview) -> None:
        parameter, dtype = self._parameters[name], DTYPES[self._dtypes[name]]
        target = parameter
        if parameter.dtype != dtype or parameter.device.type != "cpu":
            target = self._buffers.get(name)
            if target is None:
                target = self._buffers[name] = torch.empty(parameter.shape, dtype=dtype)
        _bytes(target)[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def record(self, name: str, *, digest: str, row: Mapping[str, Any] | None = None) -> None:
        buffer = self._buffers.pop(name, None)
        if buffer is not None:
            self._parameters[name].copy_(buffer)
        super().record(name, digest=digest, row=row)

    def close(self) -> None:
        self._buffers.clear()


class _InFiles(_TrialSink):
    """Writes into the files of a checkpoint.

    Args:
        folder: The checkpoint.
        layout: Place of each tensor in the files.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        super().__init__()
        self._own = layout.places
        names = [shard.filename for shard in layout.shards]
        self._descriptors = {name: os.open(folder / name, os.O_RDWR | os.O_CLOEXEC) for name in names}

    def write(self, name: str, start: int, data: memoryview) -> None:
        place = self._own[name]
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptors[place.filename], data[done:], place.offset + start + done)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
