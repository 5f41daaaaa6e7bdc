"""Watches a running stage: log, progress, and stops on a loss that is not finite, on divergence and on Ctrl-C.

The log (``log.jsonl``) has one line per step. A resumed run writes the earlier steps again, so that the file always
reads like one uninterrupted run. It is the only file of a result that holds clock times.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from mcompose.errors import NumericsError
from mcompose.progress import ProgressBar
from mcompose.whole_files import write_text

__all__ = ["Divergence", "StageWatch", "interruptible", "mark_complete"]

COMPLETE = "complete"
"""File that marks a training checkpoint as complete; written after all its other files."""

_ADVICE = "Lower 'lr' or lengthen 'warmup'; 'clip: 1.0' limits the gradients, and 'precision: float32' rounds less."


class Divergence:
    """Detector of a diverging loss, which ignores noise.

    The mean of the last ``window`` losses is compared with the first and with the best such mean. A run has diverged
    if its mean is 2 nats above the first one, or above both the first one and three times the best one.

    Args:
        window: Number of steps in a mean.
    """

    def __init__(self, window: int = 20) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._first = self._best = math.nan

    def has_diverged(self, loss: float) -> bool:
        """Adds the next loss; returns whether the run has diverged."""
        self._recent.append(loss)
        if len(self._recent) < (self._recent.maxlen or 1):
            return False
        mean = sum(self._recent) / len(self._recent)
        if math.isnan(self._first):
            self._first = self._best = mean
        self._best = min(self._best, mean)
        return mean > self._first + 2.0 or mean > max(3 * self._best, self._first) + 0.1


class StageWatch(TrainerCallback):
    """Callback that logs every step and stops the run where needed.

    Args:
        log: Path of ``log.jsonl``; None in processes other than the main one.
        progress: Progress bar of the stage.
        steps: Number of steps of the stage.
        divergence: Detector that stops a diverging run; None to let such runs go on.
        tokens: Function that returns the tokens that this process has seen so far, without padding.
    """

    def __init__(
        self,
        log: Path | None,
        *,
        progress: ProgressBar,
        steps: int,
        divergence: Divergence | None,
        tokens: Callable[[], int],
    ) -> None:
        self.interrupted = False
        self._log_path, self._progress, self._steps = log, progress, steps
        self._divergence, self._tokens = divergence, tokens
        self._log: Any = None
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the log with the steps of the run that is resumed."""
        self._started = time.monotonic()
        self._progress.start(self._steps, state.global_step)
        losses = [row for row in state.log_history if "loss" in row]
        for row in losses:
            if self._divergence is not None:
                self._divergence.has_diverged(row["loss"])
        if self._log_path is not None:
            self._log = self._log_path.open("w", encoding="utf-8")
            for row in losses:
                self._write(row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Logs one step and checks its loss.

        Raises:
            NumericsError: The loss is not finite, or the run diverges.
        """
        if not logs or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._tokens() * max(1, args.world_size) / seconds
        cost = {"tokens": self._tokens(), "seconds": round(seconds, 4), "tokens_per_second": round(rate, 1)}
        self._write({**state.log_history[-1], **cost})
        self._progress.move_to(step, f"loss {loss:.4f}, {rate:,.0f} tokens/s")
        if not math.isfinite(loss):
            raise NumericsError(f"The loss became {loss} in step {step} of {self._steps}.", hint=_ADVICE)
        if self._divergence is not None and self._divergence.has_diverged(loss):
            raise NumericsError(
                f"The loss diverges: it is {loss:.2f} in step {step} of {self._steps}.",
                hint=f"{_ADVICE} 'stop_on_divergence: false' turns this check off.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves and stops after a step in which the user interrupted the run."""
        if _any_process(interrupted=self.interrupted, device=args.device):
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Marks the training checkpoint that was just saved as complete."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the log and the progress bar."""
        self.close()

    def close(self) -> None:
        """Closes the log and the progress bar; may be called twice."""
        self._progress.finish()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()


def _any_process(*, interrupted: bool, device: torch.device) -> bool:
    """Returns whether any process was interrupted, so that all stop after the same step."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return interrupted
    flag = torch.tensor([float(interrupted)], device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def mark_complete(folder: Path) -> None:
    """Flushes every file of a training checkpoint to disk, then marks it as complete."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    write_text(folder / COMPLETE, "")


@contextmanager
def interruptible(watch: StageWatch) -> Iterator[None]:
    """Turns the first Ctrl-C (or SIGTERM) into a stop after the current step; the second one stops at once.

    Args:
        watch: Callback that stops the run.
    """

    def stop_after_step(_number: int, _frame: Any) -> None:
        if watch.interrupted:
            raise KeyboardInterrupt
        watch.interrupted = True
        sys.stderr.write("\nStopping after this step; press Ctrl-C again to stop at once.\n")

    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, stop_after_step) for number in signals}
    except ValueError:  # not the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
