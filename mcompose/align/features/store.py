"""Encoder outputs on disk: one safetensors file an item, written whole or not at all, within a bound.

The bound stops writing and throws nothing away: training walks over the same items again and again, and whatever was
used longest ago is exactly what comes next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from mcompose.align.tensor_file import read_tensors, write_tensors
from mcompose.errors import CheckpointError

__all__ = ["FeatureStore"]


class FeatureStore:
    """Tensors by key.

    Args:
        folder: Where they lie; made when it is not there. Several runs may share it.
        max_bytes: Most that the folder may hold.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.used_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Returns what was stored under a key; None when nothing was, or when it is damaged (and is then removed)."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return read_tensors(path)
        except CheckpointError:
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Stores tensors.

        Args:
            key: Hex digits.
            tensors: Name to tensor.

        Returns:
            Whether there was room.

        Raises:
            StorageError: The disk refused.
        """
        if self.used_bytes + sum(tensor.nbytes for tensor in tensors.values()) > self.max_bytes:
            return False
        path = self._path(key)
        # Its own name for each process, so that two that store the same item do not write into one file.
        draft = path.with_name(f"{path.stem}.{os.getpid()}.part")
        write_tensors(draft, tensors)
        size = draft.stat().st_size
        if self.used_bytes + size > self.max_bytes:  # a header can be what does not fit
            draft.unlink()
            return False
        self.used_bytes += size
        draft.replace(path)
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
