"""Keeps an endpoint's replies on disk, so that no prompt is paid for twice and a killed run can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from mcompose.errors import McomposeError
from mcompose.evaluate.jsonl import append_lines, whole_lines

__all__ = ["JudgeCache"]

_AT_ONCE: Final = 8


class JudgeCache:
    """An endpoint, and its replies by prompt in a JSON-lines file that only grows.

    Args:
        ask: Function that sends a prompt to the endpoint and returns its reply.
        name: Name of the endpoint and its model; replies of another one are not used.
        path: JSON-lines file of the replies; None keeps nothing.
    """

    def __init__(self, ask: Callable[[str], str], *, name: str, path: Path | None) -> None:
        self._ask, self._name, self._path = ask, name, path
        self._known: dict[str, str] = {}
        self.asked = 0
        for row in whole_lines(path) if path is not None else []:
            if isinstance(row.get("reply"), str):
                self._known[str(row.get("key"))] = row["reply"]

    def all(self, prompts: Sequence[str]) -> list[str]:
        """Returns the reply to each prompt; new prompts are sent several at a time.

        Args:
            prompts: Prompts; one that was answered before is not sent again.

        Returns:
            The replies, in the order of the prompts.

        Raises:
            McomposeError: The first error of the endpoint; replies that arrived before it are kept.
        """
        keys = [hashlib.sha256(f"{self._name}\0{prompt}".encode()).hexdigest()[:32] for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        failed: McomposeError | None = None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = {pool.submit(self._ask, prompt): key for key, prompt in new.items()}
            for one in as_completed(asked):
                try:
                    self._keep(asked[one], one.result())
                except CancelledError:
                    continue
                except McomposeError as error:
                    failed = failed or error
                    pool.shutdown(wait=False, cancel_futures=True)
        if failed:
            raise failed
        return [self._known[key] for key in keys]

    def _keep(self, key: str, reply: str) -> None:
        self._known[key] = reply
        self.asked += 1
        if self._path is not None:
            append_lines(self._path, [{"key": key, "reply": reply}])
