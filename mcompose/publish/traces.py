"""Traces of the machine that must not leave it: paths of its folders in texts, tokens in files."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_machine_paths", "holds_secret", "without_machine_paths"]

_PATH = re.compile(
    r"(?:(?<![\w:/.~+*?\])}-])|(?<=local:))(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;)\]}]+[/\\])*([^\s/\\'\",;)\]}]+)[/\\]?"
)
_TOKEN = re.compile(rb"(?<![A-Za-z0-9_])hf_[A-Za-z]{30,}(?![A-Za-z0-9_])")
_SMALL = 64 * 1024 * 1024


def without_machine_paths(text: str) -> str:
    """Shortens absolute paths to their last name.

    Args:
        text: Any text; addresses with a scheme are left alone.

    Returns:
        The text with ``/home/me/models/audio`` as ``audio``.
    """
    return _PATH.sub(lambda match: match[1], text)


def find_machine_paths(text: str) -> list[str]:
    """Returns the absolute paths in a text, in order."""
    return [match[0] for match in _PATH.finditer(text)]


def holds_secret(path: Path, *, secrets: tuple[str, ...]) -> bool:
    """Whether a small file holds a token: one that is in use, or anything of a Hub token's form.

    Args:
        path: The file; weights and other large files are not searched.
        secrets: Tokens that are in use.

    Returns:
        True when the file must not be published.
    """
    if path.suffix == ".safetensors" or path.stat().st_size > _SMALL:
        return False
    data = path.read_bytes()
    return any(secret.encode() in data for secret in secrets) or _TOKEN.search(data) is not None
