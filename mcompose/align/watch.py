"""What a running stage tells and when it stops: log, progress, loss that is not a number, divergence, Ctrl-C.

The log (``log.jsonl``) has one line a step; a resumed run writes the steps that it keeps again, so that the file always
tells one uninterrupted story. Clock times stand in it and nowhere else.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from transformers import TrainerCallback

from mcompose.errors import NumericsError
from mcompose.whole_files import write_text

__all__ = ["Divergence", "ProgressLine", "StageWatch", "interruptible", "mark_complete", "shown"]

T = TypeVar("T")

COMPLETE = "complete"
"""Marks a point that a run can go on from; written after everything else of it."""

_ADVICE = "Lower 'lr' or lengthen 'warmup'; 'clip: 1.0' bounds the steps, and 'precision: float32' rounds less."


class Divergence:
    """Tells a loss that runs away from one that is merely noisy.

    The mean of the last ``window`` losses is compared with the first and with the best such mean: 2 nats above where it
    began, or three times the best and above where it began, is a run that will not come back.

    Args:
        window: Steps of a mean.
    """

    def __init__(self, window: int = 20) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._first = self._best = math.nan

    def told(self, loss: float) -> bool:
        """Takes the next loss; True when the run has diverged."""
        self._recent.append(loss)
        if len(self._recent) < (self._recent.maxlen or 1):
            return False
        mean = sum(self._recent) / len(self._recent)
        if math.isnan(self._first):
            self._first = self._best = mean
        self._best = min(self._best, mean)
        return mean > self._first + 2.0 or mean > max(3 * self._best, self._first) + 0.1


class ProgressLine:
    """Loss, tokens per second and time left: a bar on a terminal, else a line now and then.

    Args:
        label: What is trained.
        steps: Of the stage.
        quiet: Show nothing.
        every: Seconds between lines where stderr is no terminal.
    """

    def __init__(self, label: str, steps: int, *, quiet: bool = False, every: float = 15.0) -> None:
        self._label, self._steps, self._quiet, self._every = label, steps, quiet, every
        self._bar: Any = None
        self._said = time.monotonic()

    def told(self, step: int, loss: float, rate: float, left: float) -> None:
        """Shows where the run is.

        Args:
            step: Finished steps.
            loss: Of the last.
            rate: Tokens per second.
            left: Seconds.
        """
        if self._quiet:
            return
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm  # noqa: PLC0415 - only a visible bar pays for it

                self._bar = tqdm(total=self._steps, initial=step - 1, desc=self._label, unit="step", file=sys.stderr)
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s", refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._said >= self._every or step == self._steps:
            self._said = time.monotonic()
            sys.stderr.write(
                f"{self._label}: step {step} of {self._steps}, loss {loss:.4f}, {rate:,.0f} tokens/s, "
                f"{left:.0f} s left\n"
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def shown(items: Iterable[T], *, label: str, total: int, quiet: bool = False, every: float = 15.0) -> Iterator[T]:
    """Hands samples on and shows how many are done with: a bar on a terminal, else a line now and then.

    Args:
        items: The samples.
        label: What is done with them.
        total: How many there are.
        quiet: Show nothing.
        every: Seconds between lines where stderr is no terminal.
    """
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm  # noqa: PLC0415 - only a visible bar pays for it

        yield from tqdm(items, total=total, desc=label, unit="sample", file=sys.stderr)
    else:
        said = time.monotonic()
        for number, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - said >= every or number == total:
                said = time.monotonic()
                sys.stderr.write(f"{label}: {number} of {total} samples\n")


class StageWatch(TrainerCallback):
    """Sees every step.

    Args:
        log: Where ``log.jsonl`` goes; None in processes that only help.
        progress: What shows it.
        steps: Of the stage.
        divergence: Stops a run that diverges; None never does.
        tokens: Real tokens that this process has seen so far.
    """

    def __init__(
        self,
        log: Path | None,
        *,
        progress: ProgressLine,
        steps: int,
        divergence: Divergence | None,
        tokens: Callable[[], int],
    ) -> None:
        self.interrupted = False
        self._log_path, self._progress, self._steps = log, progress, steps
        self._divergence, self._tokens = divergence, tokens
        self._log: Any = None
        self._started, self._first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the log with the steps that an earlier run did."""
        self._started, self._first_step = time.monotonic(), state.global_step
        losses = [row for row in state.log_history if "loss" in row]
        for row in losses:
            if self._divergence is not None:
                self._divergence.told(row["loss"])
        if self._log_path is not None:
            self._log = self._log_path.open("w", encoding="utf-8")
            for row in losses:
                self._write(row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Looks at one step's loss.

        Raises:
            NumericsError: It is not finite, or the run diverges.
        """
        if not logs or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        seconds = max(time.monotonic() - self._started, 1e-9)
        done = max(step - self._first_step, 1)
        rate = self._tokens() * max(1, args.world_size) / seconds
        cost = {"tokens": self._tokens(), "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}
        self._write({**state.log_history[-1], **cost})
        self._progress.told(step, loss, rate, seconds / done * (self._steps - step))
        if not math.isfinite(loss):
            raise NumericsError(f"The loss became {loss} in step {step} of {self._steps}.", hint=_ADVICE)
        if self._divergence is not None and self._divergence.told(loss):
            raise NumericsError(
                f"The loss runs away: {loss:.2f} in step {step} of {self._steps}.",
                hint=f"{_ADVICE} 'stop_on_divergence: false' lets it run.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves and stops after a step in which the user asked for it."""
        if _anybody(asked=self.interrupted, device=args.device):
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Marks what was saved as whole."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes log and bar."""
        self.close()

    def close(self) -> None:
        """Closes log and bar; may be called twice."""
        self._progress.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()


def _anybody(*, asked: bool, device: torch.device) -> bool:
    """Whether any process was asked to stop: all stop after the same step."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    flag = torch.tensor([float(asked)], device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def mark_complete(folder: Path) -> None:
    """Waits until the disk has every file of a saved point, then marks it."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    write_text(folder / COMPLETE, "")


@contextmanager
def interruptible(watch: StageWatch) -> Iterator[None]:
    """Turns the first Ctrl-C (or SIGTERM) into a stop after the step; the second one ends at once.

    Args:
        watch: Told of it.
    """

    def asked(number: int, _frame: Any) -> None:
        if watch.interrupted:
            raise KeyboardInterrupt
        watch.interrupted = True
        sys.stderr.write("\nStopping after this step; press Ctrl-C again to stop at once.\n")

    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, asked) for number in signals}
    except ValueError:  # not the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
