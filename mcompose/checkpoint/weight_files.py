"""Finds the weight files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from mcompose.checkpoint.headers import read_json_object
from mcompose.checkpoint.layout import INDEX_FILE, SINGLE_FILE
from mcompose.errors import CheckpointError

__all__ = ["PICKLES", "WeightFiles", "find_weight_files", "plain_name"]

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.pt")
_NOT_MODELS = ("consolidated*.safetensors", "adapter_model*.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one checkpoint.

    Args:
        names: File names, sorted.
        weight_map: Key to file name, from the index; None without an index.
    """

    names: tuple[str, ...]
    weight_map: dict[str, str] | None = None


def find_weight_files(folder: Path, present: Iterable[str], *, name: str) -> WeightFiles:
    """Finds the weight files as transformers does.

    Args:
        folder: Folder of the checkpoint.
        present: Names of the files of the checkpoint (on the Hub: fetched or not).
        name: Reference of the checkpoint, for messages.

    Returns:
        The files.

    Raises:
        CheckpointError: There are no safetensors files, or the index is not valid.
    """
    files = sorted(file for file in present if "/" not in file)
    if SINGLE_FILE in files:
        return WeightFiles((SINGLE_FILE,))
    indexes = [file for file in files if fnmatch(file, "*.safetensors.index.json")]
    index = INDEX_FILE if INDEX_FILE in indexes else indexes[0] if len(indexes) == 1 else ""
    if index:
        return _from_index(folder / index, files, name)
    weights = [file for file in files if fnmatch(file, "*.safetensors") and not _is_any(file, _NOT_MODELS)]
    if len(weights) == 1 and "-of-" not in weights[0]:
        return WeightFiles((weights[0],))
    raise _no_weights(files, weights, name)


def plain_name(value: Any) -> bool:
    """Returns whether a name is a plain file name: without separators, drive letters and control characters."""
    return (
        isinstance(value, str)
        and value not in {"", ".", ".."}
        and not any(mark in value for mark in "/\\\0")
        and not (len(value) > 1 and value[1] == ":")
        and value.isprintable()
    )


def _from_index(path: Path, present: list[str], name: str) -> WeightFiles:
    weight_map = read_json_object(path, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{path}' does not have a weight_map.", hint="Fetch the index again.")
    shards: dict[str, None] = {}
    for key, shard in cast("dict[str, Any]", weight_map).items():
        if isinstance(shard, str) and shard in shards:
            continue
        if not plain_name(shard) or not fnmatch(shard, "*.safetensors"):
            raise CheckpointError(
                f"'{path}' places tensor {key!a} in {shard!a}, which is not a safetensors file in its folder.",
                hint="The index is broken or malicious; the file was not opened.",
            )
        shards[shard] = None
    for shard in shards:
        if shard not in present:
            raise CheckpointError(
                f"'{name}' lacks '{shard}', which its index names.", hint="Fetch the complete checkpoint again."
            )
    return WeightFiles(tuple(sorted(shards)), cast("dict[str, str]", weight_map))


def _no_weights(files: list[str], weights: list[str], name: str) -> CheckpointError:
    """Returns the error for a folder without weight files, with a hint for what it has instead."""

    def find(*patterns: str) -> str:
        return next((file for file in files if _is_any(file, patterns) and not _is_any(file, _NOT_WEIGHTS)), "")

    if weights:
        return CheckpointError(
            f"'{name}' has {len(weights)} safetensors files ('{weights[0]}', ...) but does not have {INDEX_FILE}.",
            hint="Fetch the index with the files.",
        )
    if find("adapter_config.json"):
        return CheckpointError(
            f"'{name}' is an adapter, not a checkpoint.",
            hint="Write its base as `model` and this as `adapter`.",
        )
    if file := find("consolidated*.safetensors"):
        return CheckpointError(f"'{name}' contains only '{file}', in its author's own format.", hint=_CONVERT)
    if file := find("*.gguf"):
        return CheckpointError(
            f"'{name}' contains '{file}': GGUF files cannot be merged.",
            hint="Use the original checkpoint, or load it with transformers (`gguf_file=`) and save it.",
        )
    if file := find(*PICKLES):
        return CheckpointError(
            f"'{name}' contains its weights as a pickle ('{file}'), which can run code and is never opened.",
            hint=_CONVERT,
        )
    return CheckpointError(
        f"'{name}' does not contain safetensors weights.", hint="Name the folder of a Hugging Face checkpoint."
    )


_CONVERT = "If you trust it, load it with transformers and save it again with `model.save_pretrained(DIR)`."


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
