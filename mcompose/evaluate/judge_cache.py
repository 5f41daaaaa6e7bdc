"""What an endpoint replied, kept: no prompt is paid for twice, and a killed run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from mcompose.errors import McomposeError
from mcompose.evaluate.appending import append_lines, whole_lines

__all__ = ["Replies"]

_AT_ONCE: Final = 8


class Replies:
    """Replies by prompt, in a JSON-lines file that only grows.

    Args:
        ask: Prompt to reply.
        name: Who replies; replies of another are not used.
        path: The file; None keeps nothing.
    """

    def __init__(self, ask: Callable[[str], str], *, name: str, path: Path | None) -> None:
        self._ask, self._name, self._path = ask, name, path
        self._known: dict[str, str] = {}
        self.asked = 0
        for row in whole_lines(path) if path is not None else []:
            if isinstance(row.get("reply"), str):
                self._known[str(row.get("key"))] = row["reply"]

    def all(self, prompts: Sequence[str]) -> list[str]:
        """Replies, in the order of the prompts; several are asked for at once.

        Args:
            prompts: What to ask; one that was answered before is not asked again.

        Returns:
            The replies.

        Raises:
            McomposeError: What asking raised first; replies that came are kept.
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
