"""Files that a composed checkpoint holds beside its tensors, as its own config names them: graphs of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcompose.errors import CheckpointError
from mcompose.on_disk import COMPOSED_TYPE

__all__ = ["plain_path", "stored_graphs"]


def plain_path(name: Any) -> bool:
    """Whether a name is that of a file in or below its own folder: relative, without a way out."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or name[1:2] == ":":
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def stored_graphs(config: Mapping[str, Any], *, expert: str | None = None) -> dict[str, str]:
    """The files of ONNX experts that lie in a composed checkpoint.

    Args:
        config: Its ``config.json``.
        expert: Only those of this one.

    Returns:
        File to its sha256 in hex; those that are kept by reference lie elsewhere.

    Raises:
        CheckpointError: A name leads out of the folder.
    """
    found: dict[str, str] = {}
    experts = config.get("experts") if config.get("model_type") == COMPOSED_TYPE else None
    for name, entry in (experts or {}).items():
        graph = None if entry.get("reference") else entry.get("onnx")
        if not graph or expert not in (None, name):
            continue
        for file in (graph.get("file"), *graph.get("data", {}).values()):
            if not plain_path(file):
                raise CheckpointError(f"The config names {file!a} for expert '{name}', which is no file of its folder.")
            found[file] = graph.get("sha256", {}).get(file, "")
    return found
