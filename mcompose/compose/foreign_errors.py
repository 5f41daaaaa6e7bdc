"""Errors of transformers about a source's files, as sentences that name the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcompose.errors import CompositionError, first_line

__all__ = ["naming_source"]


@contextmanager
def naming_source(source: str, what: str) -> Iterator[None]:
    """Turns whatever a library raises while it loads a source's files into a sentence that names the source.

    Args:
        source: Name of the source.
        what: What is loaded: "tokenizer", "processor".

    Raises:
        CompositionError: Loading failed.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises this very class, and the configs' validation one of its own
        raise CompositionError(
            f"The {what} of source '{source}' cannot be loaded: {first_line(error)}.",
            hint=f"Its folder must hold the files of its {what}, as `save_pretrained` writes them.",
        ) from error
