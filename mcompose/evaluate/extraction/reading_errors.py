"""The one error of this folder: a reference that its metric cannot read."""

from __future__ import annotations

from mcompose.errors import RequestError

__all__ = ["BadReferenceError"]


class BadReferenceError(RequestError):
    """What the answer should be is not a table, or is empty, so that no answer could be scored against it."""
