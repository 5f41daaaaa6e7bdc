"""Several datasets as one: by number when all are finite, as an endless stream when one is streamed.

A sample depends on (seed, epoch, index) and on nothing else: not on the number of workers or processes, and not on
whether the run was interrupted. Samples that cannot be used are left out when the mixture is opened, and counted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mcompose.align.data.datasets import Records, open_records
from mcompose.align.data.instructions import TaskRecords, task_writer
from mcompose.align.data.samples import Sample
from mcompose.align.data.shares import draw, epoch_order, proportions, within_quotas
from mcompose.align.data.streams import StreamMixture
from mcompose.align.data.survey import DatasetReport, Survey, read_sample, survey
from mcompose.errors import RequestError
from mcompose.modalities import MODALITIES
from mcompose.recipe import DatasetSpec

__all__ = ["Mixture", "open_mixture"]

_CHARACTERS_PER_TOKEN = 4.0
_TOKENS_PER_MEDIUM = 256.0
_LOOKED_AT = 64


class Mixture(Dataset[Sample]):
    """Samples by number, 0 to ``len`` - 1, in the order of the current epoch.

    Args:
        specs: The datasets.
        records: Their records.
        surveys: What can be used of them.
        seed: Seed of the order.
        temperature: Exponent's inverse of the weights.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        records: Sequence[Records],
        surveys: Sequence[Survey],
        seed: int,
        temperature: float = 1.0,
    ) -> None:
        self.specs, self.seed, self.temperature = tuple(specs), seed, temperature
        self._records, self._surveys = tuple(records), tuple(surveys)
        quotas = [spec.quota for spec in specs]
        sizes = [min(len(one.usable), quota or len(one.usable)) for one, quota in zip(surveys, quotas, strict=True)]
        weights = [size if spec.weight is None else spec.weight for spec, size in zip(specs, sizes, strict=True)]
        self.shares = within_quotas(proportions(weights, temperature=temperature), total=sum(sizes), quotas=quotas)
        self._ends = np.cumsum(self.shares)
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Samples of an epoch: as many as the datasets can offer together, within their quotas."""
        return int(self._ends[-1])

    @property
    def epoch(self) -> int:
        """The epoch that numbers refer to."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Turns to another epoch."""
        self._epoch.fill_(epoch)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the datasets name, each once, in order."""
        return tuple(dict.fromkeys(spec.domain for spec in self.specs if spec.domain is not None))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the datasets, or their names, each once, in order."""
        return tuple(dict.fromkeys(spec.task_name for spec in self.specs))

    def tasks_of(self, epoch: int) -> np.ndarray:
        """Returns the task of every place of an epoch, as its number in ``tasks``."""
        slots = epoch_order(len(self), seed=self.seed, epoch=epoch)
        numbers = np.array([self.tasks.index(spec.task_name) for spec in self.specs])
        return numbers[np.searchsorted(self._ends, slots, side="right")]

    def other_domains(self) -> dict[str, str]:
        """Dataset -> a domain that one of its records names and that is not the dataset's; some records are read."""
        found = {}
        for spec, records, one in zip(self.specs, self._records, self._surveys, strict=True):
            for index in one.usable[:: max(1, len(one.usable) // _LOOKED_AT)]:
                record = records.read(int(index))
                domain = record.get("domain") if isinstance(record, Mapping) else None
                if isinstance(domain, str) and domain != spec.domain:
                    found.setdefault(spec.name, domain)
        return found

    def items_of_domains(self) -> dict[str, dict[str, float]]:
        """Domain -> modality -> items of an epoch, as far as the datasets' means tell."""
        found: dict[str, dict[str, float]] = {}
        for spec, one, share in zip(self.specs, self._surveys, self.shares, strict=True):
            if spec.domain is not None:
                items = found.setdefault(spec.domain, dict.fromkeys(MODALITIES, 0.0))
                for modality, mean in zip(MODALITIES, one.media.mean(axis=0).tolist(), strict=True):
                    items[modality] += float(share) * mean
        return found

    def __getitem__(self, index: int) -> Sample:
        """Returns the sample at a place of the current epoch."""
        return self.sample_at(self.epoch, index)

    def sample_at(self, epoch: int, index: int) -> Sample:
        """Returns the sample at a place of an epoch.

        Args:
            epoch: The epoch, counted from 0.
            index: The place, 0 to ``len`` - 1.

        Returns:
            The sample; its media are still in their files.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, number = self._find(epoch, index)
        return read_sample(self._records[which], int(self._surveys[which].usable[number]), self.specs[which])

    def _find(self, epoch: int, index: int) -> tuple[int, int]:
        """Dataset, and number among its usable samples."""
        slot = int(epoch_order(len(self), seed=self.seed, epoch=epoch)[index])
        which = int(np.searchsorted(self._ends, slot, side="right"))
        share = int(self.shares[which])
        position = epoch * share + slot - (int(self._ends[which]) - share)
        return which, draw(position, size=len(self._surveys[which].usable), seed=self.seed, dataset=which)

    def samples(self) -> Iterator[Sample]:
        """Yields every usable sample once, dataset by dataset, in the order of the files."""
        for records, one, spec in zip(self._records, self._surveys, self.specs, strict=True):
            for number in one.usable:
                yield read_sample(records, int(number), spec)

    def varied(self, count: int) -> Iterator[Sample]:
        """Yields the first few samples of each dataset with each set of modalities.

        Args:
            count: Samples of each.
        """
        for records, one, spec in zip(self._records, self._surveys, self.specs, strict=True):
            _, kinds_N = np.unique(one.media > 0, axis=0, return_inverse=True)
            kinds_N = kinds_N.reshape(-1)  # numpy 2.0 gave it another dimension
            firsts = [np.flatnonzero(kinds_N == kind)[:count] for kind in range(int(kinds_N.max()) + 1)]
            for number in np.sort(np.concatenate(firsts)):
                yield read_sample(records, int(one.usable[number]), spec)

    def lengths(
        self,
        *,
        epoch: int | None = None,
        characters_per_token: float = _CHARACTERS_PER_TOKEN,
        media_tokens: Mapping[str, float] | None = None,
    ) -> list[int]:
        """Estimates the tokens of every sample of an epoch, without reading any.

        Args:
            epoch: The epoch; default: the current one.
            characters_per_token: Characters of text that a token holds.
            media_tokens: Modality -> tokens of an item; ``batching.token_rates`` measures both.

        Returns:
            Tokens, in the order of the epoch.
        """
        rates = np.array([(media_tokens or {}).get(modality, _TOKENS_PER_MEDIUM) for modality in MODALITIES])
        by_dataset = [one.characters / characters_per_token + one.media @ rates for one in self._surveys]
        epoch = self.epoch if epoch is None else epoch
        places = (self._find(epoch, index) for index in range(len(self)))
        return [max(1, round(float(by_dataset[which][number]))) for which, number in places]

    def without_long(self, collator: Any) -> Mixture:
        """Leaves out what is too long, where the recipe says ``on_long: skip``; each such sample is measured.

        Args:
            collator: Measures a sample (``length``) and knows the limit (``max_length``).

        Returns:
            The mixture of the others.

        Raises:
            RequestError: A dataset has nothing left.
        """
        if collator.max_length is None or all(spec.on_long != "skip" for spec in self.specs):
            return self
        rows = zip(self._records, self._surveys, self.specs, strict=True)
        return Mixture(
            self.specs,
            records=self._records,
            surveys=[_fitting(*row, collator) if row[2].on_long == "skip" else row[1] for row in rows],
            seed=self.seed,
            temperature=self.temperature,
        )

    def report(self) -> tuple[DatasetReport, ...]:
        """Returns what is taken from each dataset, and what was left out and why."""
        return tuple(
            DatasetReport.of(
                spec, records=len(one.usable) + one.skipped.reasons.total(), skipped=one.skipped, drawn=int(share)
            )
            for spec, one, share in zip(self.specs, self._surveys, self.shares, strict=True)
        )


def _fitting(records: Records, one: Survey, spec: DatasetSpec, collator: Any) -> Survey:
    kept_N = np.ones(len(one.usable), dtype=bool)
    skipped = copy.deepcopy(one.skipped)
    for place, number in enumerate(one.usable):
        sample = read_sample(records, int(number), spec)
        length = collator.length(sample)
        if length > collator.max_length:
            kept_N[place] = False
            skipped.add("too long", f"{sample.place}: the sample has {length} tokens.")
    if not kept_N.any():
        raise RequestError(f"The dataset {spec.name} has no sample of at most {collator.max_length} tokens.")
    return one.keep(kept_N, skipped)


def open_mixture(
    specs: Sequence[DatasetSpec], *, folder: Path, seed: int, temperature: float = 1.0, align: str | None = None
) -> Mixture | StreamMixture:
    """Opens the data of a stage.

    Args:
        specs: Its datasets.
        folder: The recipe's folder, which relative paths start from.
        seed: Seed of the order.
        temperature: Weights count as weight^(1/temperature).
        align: Where the checkpoint puts a picture in its padded square; None where it does not say.

    Returns:
        A map-style dataset; an endless iterable one when any dataset is streamed.

    Raises:
        RequestError: There are no data, they cannot be read, a record cannot be used, or the weights say nothing.
    """
    if not specs:
        raise RequestError("The stage has no data.", hint="List its datasets in 'data'.")
    given = [spec.weight is not None for spec in specs]
    if any(given) and not all(given):
        lacking = specs[given.index(False)]
        raise RequestError(
            f"The dataset {lacking.name} does not have a weight, but others do.",
            hint="Set 'weight' in all datasets, or in none.",
        )
    if any(spec.streaming for spec in specs):
        return StreamMixture(specs, folder=folder, seed=seed, temperature=temperature, align=align)
    writers = [
        task_writer(spec, folder=folder, seed=seed, dataset=number, align=align) for number, spec in enumerate(specs)
    ]
    opened = [open_records(spec, folder=folder) for spec in specs]
    records = [
        plain if writer is None else TaskRecords(plain, writer) for plain, writer in zip(opened, writers, strict=True)
    ]
    surveys = [survey(one, spec) for one, spec in zip(records, specs, strict=True)]
    return Mixture(specs, records=records, surveys=surveys, seed=seed, temperature=temperature)
