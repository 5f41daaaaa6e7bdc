"""A repository of the Hub at one commit, with or without the weights.

The class is separate from ``hub.py`` so that reading does not need the network library and ``hub.py`` does not need the
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
        folder: Folder of the files; it does not have the weight files when ``headers`` is set.
        commit: Full commit id.
        headers: Name of each safetensors file to its first bytes: the 8-byte length and the whole JSON header. None
            when the weight files are in the folder.
        files: Name of every file in the repository to its size in bytes, fetched or not.
        digests: Name of each large file to its SHA-256 in hex, from the Hub; for the lock file.
    """

    folder: Path
    commit: str
    headers: Mapping[str, bytes] | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
