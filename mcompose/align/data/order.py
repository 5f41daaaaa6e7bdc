"""The samples of a stage in order: pure functions of seed and position.

A mixture gives the sample of every place of every epoch, so the order of a whole stage is known before it starts and
nothing depends on the number of processes or on where a run was interrupted: step k always takes the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

__all__ = ["Ordered", "OrderedStream"]


class Ordered:
    """A map-style dataset: the samples of a stage in order, each with its position.

    Args:
        mixture: Anything with ``__len__`` and ``sample_at(epoch, index)``.
        total: Samples of the stage.
        places: Place in the endless row of epochs of every position; None for one after the other.
    """

    def __init__(self, mixture: Any, total: int, *, places: Sequence[int] | None = None) -> None:
        self._mixture, self._total, self._places = mixture, total, places

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, position: int) -> tuple[int, Any]:
        if not 0 <= position < self._total:
            raise IndexError(position)
        place = position if self._places is None else int(self._places[position])
        epoch, index = divmod(place, len(self._mixture))
        return position, self._mixture.sample_at(epoch, index)


class OrderedStream(IterableDataset[tuple[int, Any]]):
    """The samples of an endless mixture, each with its position.

    Args:
        mixture: A stream that deals whole batches to its workers.
        batch_size: Samples of a loader's batch.
    """

    def __init__(self, mixture: Any, batch_size: int) -> None:
        self._mixture, self._batch = mixture.in_batches_of(batch_size), batch_size

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, sample in enumerate(self._mixture):
            batch, inside = divmod(number, self._batch)
            yield (batch * workers + mine) * self._batch + inside, sample
