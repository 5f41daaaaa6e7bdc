"""Which files of a folder hold the weights."""

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
        weight_map: Key to file name as the index has it; None without an index.
    """

    names: tuple[str, ...]
    weight_map: dict[str, str] | None = None


def find_weight_files(folder: Path, present: Iterable[str], *, name: str) -> WeightFiles:
    """Finds the weight files as transformers does.

    Args:
        folder: The checkpoint.
        present: Names of the files that it holds (on the Hub: fetched or not).
        name: The checkpoint as the user named it, for messages.

    Returns:
        The files.

    Raises:
        CheckpointError: There are none, they are pickles or another format, or the index is not to be
            trusted.
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
    """Whether a name is that of a file in its own folder: no separators, no way out, no oddities."""
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
        raise CheckpointError(f"'{path}' has no weight_map.")
    shards: dict[str, None] = {}
    for key, shard in cast("dict[str, Any]", weight_map).items():
        if isinstance(shard, str) and shard in shards:
            continue
        if not plain_name(shard) or not fnmatch(shard, "*.safetensors"):
            raise CheckpointError(
                f"'{path}' places tensor {key!a} in {shard!a}, not a safetensors file of its folder.",
                hint="The index is broken or malicious; it was not followed.",
            )
        shards[shard] = None
    for shard in shards:
        if shard not in present:
            raise CheckpointError(
                f"'{name}' lacks '{shard}', which its index names.", hint="Fetch the checkpoint again, whole."
            )
    return WeightFiles(tuple(sorted(shards)), cast("dict[str, str]", weight_map))


def _no_weights(files: list[str], weights: list[str], name: str) -> CheckpointError:
    """Says what was found instead of weights, and what to do about it."""

    def found(*patterns: str) -> str:
        return next((file for file in files if _is_any(file, patterns) and not _is_any(file, _NOT_WEIGHTS)), "")

    if weights:
        return CheckpointError(
            f"'{name}' has {len(weights)} safetensors files ('{weights[0]}', ...) and no {INDEX_FILE}.",
            hint="Fetch the index with the files.",
        )
    if found("adapter_config.json"):
        return CheckpointError(
            f"'{name}' is an adapter, not a checkpoint.",
            hint="Name its base as `model` and this as `adapter`.",
        )
    if file := found("consolidated*.safetensors"):
        return CheckpointError(f"'{name}' holds only '{file}', in its author's own format.", hint=_CONVERT)
    if file := found("*.gguf"):
        return CheckpointError(
            f"'{name}' holds '{file}': GGUF files cannot be merged.",
            hint="Use the original checkpoint, or load it by transformers with `gguf_file=` and save it.",
        )
    if file := found(*PICKLES):
        return CheckpointError(
            f"'{name}' holds its weights as a pickle ('{file}'), which can run code and is never opened.",
            hint=_CONVERT,
        )
    return CheckpointError(f"'{name}' holds no safetensors weights.", hint="Is it a Hugging Face checkpoint?")


_CONVERT = "Convert it: load it by transformers where you trust it, then `model.save_pretrained(DIR)`."


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
