"""Files of a composed checkpoint besides its tensors, as its config names them: graphs of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcompose.errors import CheckpointError
from mcompose.on_disk import COMPOSED_TYPE

__all__ = ["plain_path", "stored_graphs"]


def plain_path(name: Any) -> bool:
    """Returns whether a name is a relative path that stays inside its folder."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or name[1:2] == ":":
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def stored_graphs(config: Mapping[str, Any], *, expert: str | None = None) -> dict[str, str]:
    """Returns the files of ONNX experts in a composed checkpoint.

    Args:
        config: Content of its ``config.json``.
        expert: Name of one expert; None for all.

    Returns:
        File to its SHA-256 in hex, without experts that are stored by reference.

    Raises:
        CheckpointError: A name leads out of the folder.
    """
    graphs: dict[str, str] = {}
    experts = config.get("experts") if config.get("model_type") == COMPOSED_TYPE else None
    for name, entry in (experts or {}).items():
        graph = None if entry.get("reference") else entry.get("onnx")
        if not graph or expert not in (None, name):
            continue
        for file in (graph.get("file"), *graph.get("data", {}).values()):
            if not plain_path(file):
                message = f"The config names {file!a} for expert '{name}', which is not a file in its folder."
                raise CheckpointError(message)
            graphs[file] = graph.get("sha256", {}).get(file, "")
    return graphs
