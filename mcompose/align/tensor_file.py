"""Writes torch tensors as one safetensors file and reads them back, with the layout of ``mcompose.checkpoint``.

The bytes depend on names, dtypes and values alone. The file is written under a temporary name and then renamed, so
that it is never incomplete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcompose.checkpoint import TensorDigest, TensorEntry, digest_file, plan_layout, read_header, read_tensor
from mcompose.dtypes import TORCH_NAMES
from mcompose.whole_files import whole_file

__all__ = ["DTYPES", "as_torch", "dtype_name", "raw_bytes", "read_tensors", "write_tensors"]

DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in TORCH_NAMES.items()}
"""Dtype in safetensors to dtype in torch."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype in safetensors."""
    return _NAMES[dtype]


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a tensor in order; of a sharded tensor, those that this process holds."""
    sharded: Any = tensor
    local: torch.Tensor = sharded.to_local() if hasattr(sharded, "to_local") else tensor
    flat = local.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def as_torch(raw: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    """Converts raw values of a file (``read_tensor``) to a torch tensor of the same bits."""
    flat = torch.from_numpy(np.ascontiguousarray(raw).reshape(-1).view(np.uint8))
    return flat.view(DTYPES[dtype]).reshape(raw.shape)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Writes tensors to one file.

    Args:
        path: File to write; an existing file is replaced.
        tensors: Name to tensor.

    Returns:
        Name to ``xxh3:<hex>`` of the tensor's bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    specs = [(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    shard = plan_layout(specs, max_shard_size=2**62).shards[0]
    digests: dict[str, str] = {}
    with whole_file(path, needed=shard.size) as file:
        file.write(shard.header)
        for name in shard.offsets:
            data, digest = raw_bytes(tensors[name]), TensorDigest()
            file.write(data)
            digest.update(data)
            digests[name] = digest.text()
    return {name: digests[name] for name in tensors}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a file that ``write_tensors`` wrote.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return {entry.key: read_entry(entry) for entry in read_header(path).entries}


def read_entry(entry: TensorEntry) -> torch.Tensor:
    """Reads one tensor of a file."""
    return as_torch(read_tensor(entry), entry.dtype)


def file_digest(path: Path) -> str:
    """Returns the digest ``sha256:<hex>`` of a file."""
    return f"sha256:{digest_file(path).sha256}"
