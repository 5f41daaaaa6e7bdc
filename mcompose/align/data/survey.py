"""Finds the usable records of a dataset before training: reads every record once and checks that its media exist.

For a dataset with ``on_broken: skip``, media are also decoded, since only this detects truncated files. So the set of
samples is fixed before the first step, and a skipped record is not replaced by another one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from mcompose.align.data.datasets import Records
from mcompose.align.data.preference_records import is_pair, parse_pair
from mcompose.align.data.samples import Sample, instructed, parse_record
from mcompose.errors import RequestError
from mcompose.media import read_media
from mcompose.modalities import MODALITIES
from mcompose.recipe import DatasetSpec

__all__ = [
    "EXAMPLES",
    "DatasetReport",
    "Skipped",
    "Survey",
    "UnusableError",
    "check_media",
    "make_sample",
    "read_sample",
    "survey",
]

EXAMPLES: Final = 5
"""Sentences that a report keeps of each dataset."""

_THREADS: Final = 8
_CHUNK: Final = 1024


@dataclass
class Skipped:
    """Records that were left out.

    Args:
        reasons: "malformed", "missing medium", "broken medium" or "too long" -> how many.
        examples: The first few sentences about them.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, reason: str, sentence: str) -> None:
        """Counts one record."""
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(sentence)


@dataclass(frozen=True)
class DatasetReport:
    """What a mixture takes from one dataset.

    Args:
        name: Name of the dataset.
        domain: Domain of the sample; None when its dataset names none.
        records: Records that were looked at.
        used: Samples that can be used.
        drawn: Samples of it in an epoch; None for a stream.
        skipped: Reason -> records that were left out.
        examples: The first few sentences about them.
    """

    name: str
    domain: str | None
    records: int
    used: int
    drawn: int | None
    skipped: dict[str, int]
    examples: tuple[str, ...]

    @classmethod
    def of(cls, spec: DatasetSpec, *, records: int, skipped: Skipped, drawn: int | None = None) -> DatasetReport:
        """Returns the report on a dataset of which so many records were looked at, and some were skipped."""
        return cls(
            spec.name,
            spec.domain,
            records=records,
            used=records - skipped.reasons.total(),
            drawn=drawn,
            skipped=dict(sorted(skipped.reasons.items())),
            examples=tuple(skipped.examples),
        )

    def row(self) -> dict[str, Any]:
        """Returns the report as plain values, for a ledger."""
        return asdict(self)


@dataclass
class Survey:
    """What can be used of a dataset.

    Args:
        usable: Numbers of the records that can be used (N,).
        characters: Characters of text of each (N,).
        media: Items of each modality in the order of ``MODALITIES`` (N, 4).
        skipped: The others.
    """

    usable: np.ndarray
    characters: np.ndarray
    media: np.ndarray
    skipped: Skipped

    def keep(self, kept_N: np.ndarray, skipped: Skipped) -> Survey:
        """Returns the survey of some of the records only, and of what was skipped in all."""
        return Survey(self.usable[kept_N], self.characters[kept_N], self.media[kept_N], skipped)


class UnusableError(RequestError):
    """A record that cannot be used, and why.

    Args:
        message: The sentence.
        reason: The word that reports count it under.
    """

    def __init__(self, message: str, *, reason: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


_Seen: TypeAlias = Sample | UnusableError


def make_sample(record: Any, *, spec: DatasetSpec, index: int, place: str, folder: Path) -> Sample:
    """Makes a sample of a record.

    Args:
        record: The record; an error in its place when it is not JSON.
        spec: Its dataset.
        index: Its number.
        place: Place in the files, for messages.
        folder: Folder that relative paths of media start from.

    Returns:
        The sample.

    Raises:
        RequestError: The record is malformed; the sentence has its place.
    """
    try:
        if isinstance(record, RequestError):
            raise record
        if is_pair(record):
            messages, other = parse_pair(record, folder=folder)
        else:
            messages, other = parse_record(record, layout=spec.format, folder=folder), None
    except RequestError as error:
        raise UnusableError(f"{place}: {error.message}", reason="malformed") from error
    messages = instructed(messages, spec.template)
    rejected = None if other is None else instructed(other, spec.template)
    return Sample(
        messages,
        spec.domain,
        spec.name,
        index,
        place=place,
        on_long=spec.on_long,
        rejected=rejected,
        task=spec.task_name,
    )


def read_sample(records: Records, index: int, spec: DatasetSpec) -> Sample:
    """Reads one sample by its record's number; see :func:`make_sample`."""
    try:
        record = records.read(index)
    except RequestError as error:
        record = error
    folder = records.media_folder(index)
    return make_sample(record, spec=spec, index=index, place=records.place(index), folder=folder)


def survey(records: Records, spec: DatasetSpec) -> Survey:
    """Reads every record of a dataset once.

    Args:
        records: The records.
        spec: What the recipe says of them; ``limit`` counts records, also those that are skipped.

    Returns:
        What can be used.

    Raises:
        RequestError: A record cannot be used, and the recipe does not say that such are skipped; or none can.
    """
    total = len(records) if spec.limit is None else min(len(records), spec.limit)
    skipped = Skipped()
    rows: list[tuple[int, int, list[int]]] = []
    for sample in _looked_at(records, spec, total, skipped):
        kinds = [part["type"] for message in sample.messages for part in message["content"]]
        rows.append((sample.index, sample.characters(), [kinds.count(modality) for modality in MODALITIES]))
    if not rows:
        first = f" The first: {skipped.examples[0]}" if skipped.examples else ""
        raise RequestError(f"The dataset {spec.name} has no usable record.{first}")
    return Survey(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.int64),
        skipped,
    )


def _looked_at(records: Records, spec: DatasetSpec, total: int, skipped: Skipped) -> Iterator[Sample]:
    """Yields the usable samples in order; what is decoded is read by threads, since decoding leaves Python."""

    def look(index: int) -> _Seen:
        try:
            sample = read_sample(records, index, spec)
            check_media(sample, decode=spec.on_broken == "skip")
        except UnusableError as error:
            return error
        return sample

    numbers = range(total)
    for seen in _in_threads(look, numbers) if spec.on_broken == "skip" else map(look, numbers):
        if isinstance(seen, Sample):
            yield seen
        elif spec.on_broken == "skip":
            skipped.add(seen.reason, seen.message)
        else:
            raise RequestError(seen.message, hint="Fix the record, or set 'on_broken: skip' for this dataset.")


def _in_threads(look: Callable[[int], _Seen], numbers: range) -> Iterator[_Seen]:
    """In order, and never far ahead."""
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for start in range(0, len(numbers), _CHUNK):
            yield from pool.map(look, numbers[start : start + _CHUNK])


def check_media(sample: Sample, *, decode: bool) -> None:
    """Checks that the media of a sample exist.

    Args:
        sample: Sample to check.
        decode: Whether to decode the media too.

    Raises:
        RequestError: A medium is missing or broken; the message names its path and the sample's place.
    """
    for part in (part for message in sample.messages for part in message["content"] if part["type"] != "text"):
        path, modality = part.get("path"), part["type"]
        if path is not None and not os.path.isfile(path):  # noqa: PTH113 - twice as fast, a million times
            raise UnusableError(f"{sample.place}: The {modality} {path} is missing.", reason="missing medium")
        if decode:
            _decode(sample, part["bytes"] if path is None else Path(path), modality)


def _decode(sample: Sample, item: Path | bytes, modality: str) -> None:
    try:
        read_media(item, modality)
    except RequestError as error:
        raise UnusableError(f"{sample.place}: {error.message}", reason="broken medium") from error
