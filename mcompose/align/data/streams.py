"""A mixture that is read as it comes: for data on the Hub and for what is too large to list.

Which stream gives the next sample is drawn from (seed, epoch), and a stream that ends begins again, so the row of
samples is endless and always the same. Every worker walks the whole row and keeps the batches that are its own, as a
loader asks its workers in turn: so the batches are the same for any number of workers, once the batch size is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mcompose.align.data.datasets import stream_records
from mcompose.align.data.samples import Sample
from mcompose.align.data.shares import proportions, stream_generator
from mcompose.align.data.survey import DatasetReport, Skipped, UnusableError, check_media, make_sample
from mcompose.errors import RequestError
from mcompose.recipe import DatasetSpec

__all__ = ["StreamMixture"]


class StreamMixture(IterableDataset[Sample]):
    """An endless row of samples.

    Args:
        specs: The datasets.
        folder: The recipe's folder.
        seed: Seed of the order.
        temperature: Exponent's inverse of the weights.
        batch_size: Samples of a loader's batch; needed for the same batches with any number of workers.

    Raises:
        RequestError: Several datasets are mixed without weights, as a stream has no size to go by.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        folder: Path,
        seed: int,
        temperature: float = 1.0,
        batch_size: int = 1,
    ) -> None:
        if len(specs) > 1 and any(spec.weight is None for spec in specs):
            raise RequestError(
                "Streams are mixed by their weights, and a dataset has none.",
                hint="Give every dataset a weight, or read without 'streaming'.",
            )
        self.specs, self.folder, self.seed, self.temperature = tuple(specs), folder, seed, temperature
        self.batch_size = batch_size
        self._collator: Any = None
        self._skipped = [Skipped() for _ in specs]
        self._read = [0 for _ in specs]
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the datasets name, each once, in order."""
        return tuple(dict.fromkeys(spec.domain for spec in self.specs if spec.domain is not None))

    def set_epoch(self, epoch: int) -> None:
        """Turns to another epoch: another order of the streams, each from its beginning."""
        self._epoch.fill_(epoch)

    def in_batches_of(self, batch_size: int) -> StreamMixture:
        """Returns the same row for a loader with this batch size."""
        return self._changed(batch_size=batch_size, collator=self._collator)

    def without_long(self, collator: Any) -> StreamMixture:
        """Returns the same row without what is too long, where the recipe says ``on_long: skip``; such are measured."""
        return self._changed(batch_size=self.batch_size, collator=collator)

    def _changed(self, *, batch_size: int, collator: Any) -> StreamMixture:
        made = StreamMixture(
            self.specs, folder=self.folder, seed=self.seed, temperature=self.temperature, batch_size=batch_size
        )
        made._collator = collator
        return made

    def __iter__(self) -> Iterator[Sample]:
        """Yields the samples of this worker's batches."""
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, sample in enumerate(self._row()):
            if (number // self.batch_size) % workers == mine:
                yield sample

    def _row(self) -> Iterator[Sample]:
        weights = [1.0 if spec.weight is None else spec.weight for spec in self.specs]
        chances = proportions(weights, temperature=self.temperature)
        generator = stream_generator(self.seed, int(self._epoch))
        streams = [self._endless(which) for which in range(len(self.specs))]
        while True:
            yield next(streams[int(generator.choice(len(streams), p=chances))])

    def _endless(self, which: int) -> Iterator[Sample]:
        first = True
        while True:
            found = False
            for sample in self._once(which, counting=first):
                found = True
                yield sample
            if not found:
                raise RequestError(f"The dataset {self.specs[which].name} has no record that can be used.")
            first = False

    def _once(self, which: int, *, counting: bool) -> Iterator[Sample]:
        spec = self.specs[which]
        for index, record, place, folder in stream_records(spec, folder=self.folder):
            if spec.limit is not None and index >= spec.limit:
                return
            self._read[which] += counting
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
        """Returns what this process has read so far of each dataset; workers count for themselves."""
        return tuple(
            DatasetReport.of(spec, records=read, skipped=skipped)
            for spec, read, skipped in zip(self.specs, self._read, self._skipped, strict=True)
        )
