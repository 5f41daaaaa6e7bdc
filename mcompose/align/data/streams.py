"""Mixture of streamed datasets, for data on the Hub and for data that are too large to list.

The stream of the next sample is drawn from (seed, epoch), and a stream that ends starts again, so the sequence of
samples is endless and reproducible. Every worker reads the whole sequence and keeps its own batches, in the order in
which a loader asks its workers; so the batches are the same for any number of workers, for a given batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mcompose.align.data.datasets import stream_records
from mcompose.align.data.instructions import task_writer
from mcompose.align.data.samples import Sample
from mcompose.align.data.shares import proportions, stream_generator
from mcompose.align.data.survey import DatasetReport, Skipped, UnusableError, check_media, make_sample
from mcompose.errors import RequestError
from mcompose.recipe import DatasetSpec

__all__ = ["StreamMixture"]


class StreamMixture(IterableDataset[Sample]):
    """Endless sequence of samples from streamed datasets.

    Args:
        specs: Datasets, as in the recipe.
        folder: Folder of the recipe, where relative paths start.
        seed: Seed of the order.
        temperature: Temperature of the weights, which count as weight^(1/temperature).
        batch_size: Samples of a loader's batch; it makes batches independent of the number of workers.
        align: Where the checkpoint puts a picture in its padded square; None where it does not say.

    Raises:
        RequestError: Several datasets are mixed without weights, or one has a quota; the size of a stream is not known.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        folder: Path,
        seed: int,
        temperature: float = 1.0,
        batch_size: int = 1,
        align: str | None = None,
    ) -> None:
        if len(specs) > 1 and any(spec.weight is None for spec in specs):
            raise RequestError(
                "Streamed datasets must have weights, and one does not have a weight.",
                hint="Give every dataset a 'weight', or remove 'streaming'.",
            )
        for spec in specs:
            if spec.quota is not None:
                raise RequestError(
                    f"The 'quota' of {spec.name} has no effect beside a streamed dataset, which has no epochs.",
                    hint="Set its 'weight' instead.",
                )
        self.specs, self.folder, self.seed, self.temperature = tuple(specs), folder, seed, temperature
        self.batch_size, self._align = batch_size, align
        self._writers = [
            task_writer(spec, folder=folder, seed=seed, dataset=number, align=align)
            for number, spec in enumerate(specs)
        ]
        self._collator: Any = None
        self._skipped = [Skipped() for _ in specs]
        self._read = [0 for _ in specs]
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of the datasets, each once, in order."""
        return tuple(dict.fromkeys(spec.domain for spec in self.specs if spec.domain is not None))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the datasets, or their names, each once, in order."""
        return tuple(dict.fromkeys(spec.task_name for spec in self.specs))

    def set_epoch(self, epoch: int) -> None:
        """Switches to another epoch: another order of the streams, each from its start."""
        self._epoch.fill_(epoch)

    def in_batches_of(self, batch_size: int) -> StreamMixture:
        """Returns the same sequence for a loader with another batch size."""
        return self._changed(batch_size=batch_size, collator=self._collator)

    def without_long(self, collator: Any) -> StreamMixture:
        """Returns the sequence without samples that are too long, for datasets with ``on_long: skip``."""
        return self._changed(batch_size=self.batch_size, collator=collator)

    def _changed(self, *, batch_size: int, collator: Any) -> StreamMixture:
        copy = StreamMixture(
            self.specs,
            folder=self.folder,
            seed=self.seed,
            temperature=self.temperature,
            batch_size=batch_size,
            align=self._align,
        )
        copy._collator = collator
        return copy

    def __iter__(self) -> Iterator[Sample]:
        """Yields the samples of this worker's batches."""
        worker = get_worker_info()
        rank, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, sample in enumerate(self._all_samples()):
            if (number // self.batch_size) % workers == rank:
                yield sample

    def _all_samples(self) -> Iterator[Sample]:
        weights = [1.0 if spec.weight is None else spec.weight for spec in self.specs]
        probabilities = proportions(weights, temperature=self.temperature)
        generator = stream_generator(self.seed, int(self._epoch))
        streams = [self._endless(which) for which in range(len(self.specs))]
        while True:
            yield next(streams[int(generator.choice(len(streams), p=probabilities))])

    def _endless(self, which: int) -> Iterator[Sample]:
        first = True
        while True:
            is_empty = True
            for sample in self._once(which, counting=first):
                is_empty = False
                yield sample
            if is_empty:
                raise RequestError(f"The dataset {self.specs[which].name} has no usable record.")
            first = False

    def _once(self, which: int, *, counting: bool) -> Iterator[Sample]:
        spec = self.specs[which]
        for index, record, place, folder in stream_records(spec, folder=self.folder):
            if spec.limit is not None and index >= spec.limit:
                return
            self._read[which] += counting
            if (writer := self._writers[which]) is not None:
                record = writer.attempt(record, index, folder=folder)
            try:
                sample = make_sample(record, spec=spec, index=index, place=place, folder=folder)
                check_media(sample, decode=spec.on_broken == "skip")
            except UnusableError as error:
                if spec.on_broken == "error":
                    raise
                self._leave_out(which, error.reason, error.message, counting=counting)
                continue
            if self._is_long(sample):
                self._leave_out(which, "too long", f"{place}: the sample is too long.", counting=counting)
                continue
            yield sample

    def _is_long(self, sample: Sample) -> bool:
        collator = self._collator
        if collator is None or collator.max_length is None or sample.on_long != "skip":
            return False
        return collator.length(sample) > collator.max_length

    def _leave_out(self, which: int, reason: str, sentence: str, *, counting: bool) -> None:
        if counting:
            self._skipped[which].add(reason, sentence)

    def report(self) -> tuple[DatasetReport, ...]:
        """Reports what this process has read of each dataset so far, without what its workers read."""
        return tuple(
            DatasetReport.of(spec, records=read, skipped=skipped)
            for spec, read, skipped in zip(self.specs, self._read, self._skipped, strict=True)
        )
