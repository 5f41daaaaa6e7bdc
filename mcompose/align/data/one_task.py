"""Orders the samples of a stage so that every optimizer step has samples of one task.

The mixture's own endless order is dealt out to one bin a task; a bin that holds a whole step's samples becomes the next
step. So a step is of one task over all processes and pieces of accumulation, tasks come as often as the mixture has
them, nothing is dropped at the end of an epoch, and the order depends on seed and position alone.

Paper: SPHINX, arXiv 2311.07575, as the training code of LLaMA2-Accessory does it.
Differs: there, samples of a type are sorted by length, and those that fill no whole batch are dropped in every epoch;
here they wait for the next one, and length counts only where ``group_by_length`` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcompose.align.data.batching import TokenRates
from mcompose.align.data.mixture import Mixture
from mcompose.errors import RequestError

__all__ = ["one_task_places"]

_WINDOW = 50  # steps of a task that are sorted by length together


def one_task_places(mixture: Mixture, *, steps: int, batch_size: int, rates: TokenRates | None = None) -> list[int]:
    """Orders a whole stage by tasks.

    Args:
        mixture: Samples to order; its epoch is not changed.
        steps: Optimizer steps of the stage.
        batch_size: Samples of a step over all processes.
        rates: Rates to estimate lengths, to put samples of similar length into one step; None to leave lengths alone.

    Returns:
        Places in the endless sequence of epochs: ``epoch * len(mixture) + index``.

    Raises:
        RequestError: A task fills no whole step of the stage.
    """
    tasks = mixture.tasks
    bins: list[list[int]] = [[] for _ in tasks]
    made: list[tuple[int, list[int]]] = []
    epoch = 0
    while len(made) < steps:
        for index, task in enumerate(mixture.tasks_of(epoch).tolist()):
            bins[task].append(epoch * len(mixture) + index)
            if len(bins[task]) == batch_size:
                made.append((task, bins[task]))
                bins[task] = []
        epoch += 1
    made = made[:steps]
    _check_tasks(tasks, [task for task, _ in made], batch_size=batch_size)
    if rates is not None:
        made = _by_length(made, _lengths(mixture, epoch, rates), seed=mixture.seed)
    return [place for _, places in made for place in places]


def _check_tasks(tasks: Sequence[str], drawn: Sequence[int], *, batch_size: int) -> None:
    for number, task in enumerate(tasks):
        if number not in drawn:
            raise RequestError(
                f"The samples of '{task}' fill no step of {batch_size} in the {len(drawn)} steps of this stage.",
                hint="Train for more steps, lower 'batch_size', or raise its 'weight'.",
            )


def _lengths(mixture: Mixture, epochs: int, rates: TokenRates) -> np.ndarray:
    """Estimates the tokens of every place of the first epochs."""
    rows = [
        mixture.lengths(epoch=epoch, characters_per_token=rates.characters_per_token, media_tokens=rates.media_tokens)
        for epoch in range(epochs)
    ]
    return np.concatenate([np.array(row, dtype=np.int64) for row in rows])


def _by_length(made: list[tuple[int, list[int]]], lengths: np.ndarray, *, seed: int) -> list[tuple[int, list[int]]]:
    """Exchanges the samples of neighbouring steps of a task, so that those of one step have similar lengths."""
    sorted_steps = list(made)
    for task in dict.fromkeys(task for task, _ in made):
        numbers = [number for number, (other, _) in enumerate(made) if other == task]
        for start in range(0, len(numbers), _WINDOW):
            window = numbers[start : start + _WINDOW]
            places = sorted((place for number in window for place in made[number][1]), key=lambda p: int(lengths[p]))
            size = len(made[window[0]][1])
            order = np.random.default_rng([seed, task, start]).permutation(len(window))
            for number, row in zip(window, order.tolist(), strict=True):
                sorted_steps[number] = (task, places[row * size : (row + 1) * size])
    return sorted_steps
