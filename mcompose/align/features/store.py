"""Stores encoder outputs on disk: one safetensors file per item, written atomically, up to a size limit.

At the limit, nothing more is written and nothing is evicted: training reads the same items in every epoch, so the
least recently used item is the one that is needed next.
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
    """Store of tensors by key.

    Args:
        folder: Folder of the files, created if missing. Several runs may share it.
        max_bytes: Largest size of the folder, in bytes.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.used_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Reads the tensors of a key; None if there are none, or if the file is damaged (it is then deleted)."""
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
            Whether the tensors were stored; False if the limit is reached.

        Raises:
            StorageError: The file cannot be written.
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
