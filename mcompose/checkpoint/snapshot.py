"""What the Hub hands to the reader: a folder at one commit, with or without the weights.

The value stands apart from ``hub.py`` so that reading needs no network library and ``hub.py`` needs no
reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["HubSnapshot"]


@dataclass(frozen=True)
class HubSnapshot:
    """One repository at one commit.

    Args:
        folder: Where the files lie; the weight files themselves are absent when ``headers`` is given.
        commit: Full commit id.
        headers: Without weights: name of each safetensors file to its first bytes, as they stand in the file:
            the 8-byte length and the whole JSON header. None when the weight files are in the folder.
        files: Name to size in bytes of every file that the repository holds, fetched or not.
        digests: Name to sha256 in hex of the large files, as the Hub states it; for the lock file.
    """

    folder: Path
    commit: str
    headers: Mapping[str, bytes] | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
