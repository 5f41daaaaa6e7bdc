"""Any OpenAI-compatible chat endpoint, for judges and for writing questions.

Only the standard library: the Hub's client belongs to other rooms and refuses local servers when the Hub is off, and no
other HTTP client is a dependency. The token comes from the environment when a request is made; it is never an argument,
never stored, and cut out of every message. Redirects are refused, since they would carry it elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from mcompose.errors import McomposeError, RequestError

__all__ = ["MODEL_VARIABLE", "TOKEN_VARIABLE", "URL_VARIABLE", "Endpoint", "EndpointError", "endpoint_from"]

URL_VARIABLE: Final = "MCOMPOSE_ENDPOINT"
MODEL_VARIABLE: Final = "MCOMPOSE_ENDPOINT_MODEL"
TOKEN_VARIABLE: Final = "MCOMPOSE_ENDPOINT_TOKEN"  # noqa: S105 - the name of a variable
_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT: Final = 60.0


class EndpointError(McomposeError):
    """The endpoint refused, or could not be reached; answers that it gave are kept."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """One model behind one URL.

    Args:
        url: Base URL, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: Its name there.
        attempts: How often a request is tried when the server is busy or out of reach.
        timeout: Seconds for one attempt.
        sleep: Waits between attempts; for tests.
    """

    url: str
    model: str
    attempts: int = 5
    timeout: float = 120.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RequestError(f"'{parts.scheme}' endpoints do not exist.", hint="Such as http://localhost:8000/v1.")
        if parts.username or parts.password:
            raise RequestError("The endpoint's URL holds a password.", hint=f"Put the token into {TOKEN_VARIABLE}.")

    def __call__(self, prompt: str, *, max_tokens: int = 512) -> str:
        """Asks once, without sampling.

        Args:
            prompt: The user's turn.
            max_tokens: Longest reply.

        Returns:
            The reply's text.

        Raises:
            EndpointError: No attempt succeeded, or the reply has no text.
        """
        turns = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": turns, "temperature": 0, "max_tokens": max_tokens}
        for attempt in range(1, self.attempts + 1):
            try:
                return _text(self._post(body), self.url)
            except _BusyError as busy:
                if attempt == self.attempts:
                    raise EndpointError(f"{self.url} did not answer in {attempt} attempts: {busy}.") from busy
                self.sleep(min(_LONGEST_WAIT, busy.wait or 0.5 * 2**attempt))
        raise AssertionError("an endpoint is asked at least once")

    def _post(self, body: dict[str, Any]) -> bytes:
        token = os.environ.get(TOKEN_VARIABLE, "")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        url = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - http(s), checked
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            told = error.read(300).decode(errors="replace")
            told = " ".join((told.replace(token, "***") if token else told).split())
            if error.code in _AGAIN:
                raise _BusyError(f"{error.code} {told}", _seconds(error.headers.get("Retry-After"))) from error
            hint = f"The token is read from {TOKEN_VARIABLE}." if error.code in {401, 403} else ""
            raise EndpointError(f"{self.url} refused with {error.code}: {told}.", hint=hint) from None
        except (OSError, http.client.HTTPException) as error:
            raise _BusyError(str(getattr(error, "reason", error)), 0.0) from error


class _BusyError(Exception):
    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


def _text(answer: bytes, url: str) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} answered with something that is not a chat completion.") from error
    return content if isinstance(content, str) else ""


def endpoint_from(url: str | None, model: str | None) -> Endpoint | None:
    """Returns the endpoint that options or the environment name.

    Args:
        url: Base URL; None: ``MCOMPOSE_ENDPOINT``.
        model: Model; None: ``MCOMPOSE_ENDPOINT_MODEL``.

    Returns:
        The endpoint; None when no URL is named.

    Raises:
        RequestError: The URL is none, or no model is named.
    """
    url, model = url or os.environ.get(URL_VARIABLE), model or os.environ.get(MODEL_VARIABLE)
    if not url:
        return None
    if not model:
        raise RequestError(
            f"No model is named for the endpoint {url}.", hint=f"Give --endpoint-model, or set {MODEL_VARIABLE}."
        )
    return Endpoint(url, model)
