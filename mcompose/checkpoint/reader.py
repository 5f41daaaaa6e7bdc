"""Opens a checkpoint on disk: its config, and the file and offset of each tensor.

Opening reads the config and the headers of the weight files, never a weight; torch and the safetensors library are not
needed. Files are found as in transformers: ``model.safetensors``, else the index, else the only other safetensors file.
A pickle is never opened.

An index may name only files in its own folder. The name is checked, not the target of a link: the Hub's cache consists
of links into its blobs, and users may link shards too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from mcompose.checkpoint.headers import Header, parse_header, read_header, read_json_object
from mcompose.checkpoint.sidecar import code_files, read_card, sidecar_files
from mcompose.checkpoint.snapshot import HubSnapshot
from mcompose.checkpoint.stored import stored_graphs
from mcompose.checkpoint.tensor import TensorEntry
from mcompose.checkpoint.weight_files import find_weight_files
from mcompose.errors import CheckpointError
from mcompose.refs import ModelRef

__all__ = ["Checkpoint", "is_tied", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and checked.

    Args:
        ref: Reference, as the user wrote it.
        folder: Folder of the files. Without weights (Hub only), it has only ``config.json`` and the sidecars.
        commit: Commit of a Hub checkpoint; None for a local one.
        config: Content of ``config.json``.
        tensors: Key to entry, sorted by file name, then in the order of the data.
        weight_files: Names of the weight files, sorted.
        metadata: ``__metadata__`` of the first weight file.
        has_weights: False when only headers were fetched.
        digests: Name of each large file to its SHA-256 in hex, from the Hub.
    """

    ref: ModelRef
    folder: Path
    commit: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    weight_files: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    has_weights: bool = True
    digests: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Front matter of the model card; empty without one."""
        return read_card(self.folder)

    @property
    def licence(self) -> str:
        """Licence of the model card, by its own name when the card says ``other``; empty without one."""
        licence = _joined(self.card.get("license"))
        return _joined(self.card.get("license_name")) or licence if licence == "other" else licence

    @property
    def base_model(self) -> str:
        """Base model of the model card, several joined by commas; empty when the card does not state one."""
        return _joined(self.card.get("base_model"))

    @property
    def model_type(self) -> str:
        """Model type of transformers; empty when the config does not have one."""
        return _joined(self.config.get("model_type"))

    @property
    def quantised(self) -> str:
        """Name of the quantisation; empty for ordinary weights. Such tensors cannot be merged."""
        scheme = self.config.get("quantization_config") or _text_config(self.config).get("quantization_config")
        if not scheme:
            return ""
        method = cast("dict[str, Any]", scheme).get("quant_method") if isinstance(scheme, dict) else None
        return str(method or "quantised")

    @cached_property
    def total_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key to shape, in the order of ``tensors``, as ``read_anatomy`` takes it."""
        return {key: entry.shape for key, entry in self.tensors.items()}

    def sidecars(self) -> list[Path]:
        """Returns the files of tokenizer, processor, templates and generation config, sorted by name."""
        return sidecar_files(self.folder)

    def graphs(self) -> list[Path]:
        """Returns the experts' ONNX graphs in a composed checkpoint, sorted by name."""
        return sorted(self.folder / name for name in stored_graphs(self.config))

    def code(self) -> list[Path]:
        """Returns the checkpoint's Python files, sorted by name; mcompose never runs them."""
        return code_files(self.folder)


def open_checkpoint(
    ref: ModelRef | Path, *, relative_to: Path = Path(), weights: bool = True, token: str | None = None
) -> Checkpoint:
    """Opens a checkpoint: reads and checks its config and the headers of its weight files.

    Args:
        ref: A reference, or the path of a folder.
        relative_to: Folder that relative paths start from: the recipe's folder.
        weights: Whether the weights will be read. False fetches only headers from the Hub; it has no effect for local
            folders.
        token: Hub token; default: the token of the environment.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: A file is missing, broken or unsafe; the message names it.
        HubError: The Hub refused, or could not be reached.
    """
    if isinstance(ref, Path):
        ref = ModelRef("local", str(ref))
    if ref.kind == "hub":
        from mcompose.checkpoint import hub  # noqa: PLC0415 - a network library, for Hub references only

        snapshot = hub.fetch(ref, weights=weights, token=token)
        return _open_snapshot(ref, snapshot)
    folder = ref.path(relative_to)
    if not folder.is_dir():
        raise _no_folder(ref, folder)
    return _open(ref, HubSnapshot(folder, ""), {path.name: 0 for path in folder.iterdir()})


def is_tied(config: Mapping[str, Any], keys: Iterable[str] = ()) -> bool:
    """Returns whether the head is the embedding.

    The language model's setting decides, then the outer one. Without a setting, the head is tied when the checkpoint
    does not contain a head: transformers' default differs between classes, and an untied head would be stored.

    Args:
        config: Content of ``config.json``.
        keys: Keys of the checkpoint; needed only when the config does not have the setting.
    """
    for table in (_text_config(config), config):
        value = table.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    names = list(keys)
    return bool(names) and not any(name.endswith("lm_head.weight") for name in names)


def _open_snapshot(ref: ModelRef, snapshot: HubSnapshot) -> Checkpoint:
    names = dict(snapshot.files) or {path.name: 0 for path in snapshot.folder.iterdir()}
    return _open(ref, snapshot, names)


def _open(ref: ModelRef, snapshot: HubSnapshot, names: Mapping[str, int]) -> Checkpoint:
    folder = snapshot.folder
    files = find_weight_files(folder, names, name=str(ref))
    config = _read_config(folder, str(ref))
    headers = {name: _header(snapshot, name) for name in files.names}
    tensors: dict[str, TensorEntry] = {}
    for name, header in headers.items():
        for entry in header.entries:
            if entry.key in tensors:
                raise CheckpointError(
                    f"Tensor '{entry.key}' of '{ref}' is in two files: '{tensors[entry.key].file.name}' and '{name}'."
                )
            tensors[entry.key] = entry
    _check_index(files.weight_map, tensors, str(ref))
    metadata = next(iter(headers.values())).metadata
    has_weights = snapshot.headers is None
    return Checkpoint(
        ref,
        folder,
        snapshot.commit or None,
        config,
        tensors,
        files.names,
        metadata,
        has_weights=has_weights,
        digests=snapshot.digests,
    )


def _header(snapshot: HubSnapshot, name: str) -> Header:
    path = snapshot.folder / name
    if snapshot.headers is None:
        return read_header(path)
    if name not in snapshot.headers or name not in snapshot.files:
        raise CheckpointError(f"The header of '{name}' was not fetched.")
    return parse_header(snapshot.headers[name], file=path, size=snapshot.files[name])


def _check_index(weight_map: Mapping[str, str] | None, tensors: Mapping[str, TensorEntry], ref: str) -> None:
    """Checks that the index and the files agree."""
    if weight_map is None:
        return
    for key, filename in weight_map.items():
        if key not in tensors or tensors[key].file.name != filename:
            raise CheckpointError(
                f"The index of '{ref}' places '{key}' in '{filename}', which does not contain it.",
                hint="Fetch the files again; they may belong to different checkpoints.",
            )
    for key, entry in tensors.items():
        if key not in weight_map:
            raise CheckpointError(
                f"'{entry.file.name}' of '{ref}' contains '{key}', which is not in the index.",
                hint="Fetch the files again; they may belong to different checkpoints.",
            )


def _read_config(folder: Path, ref: str) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        has_params = (folder / "params.json").exists()
        hint = "It has a 'params.json': convert it to the Hugging Face format first."
        raise CheckpointError(
            f"'{ref}' does not have a config.json.", hint=hint if has_params else "Name a Hugging Face checkpoint."
        )
    config = read_json_object(folder / "config.json")
    for key in ("model_type", "_name_or_path"):
        if not isinstance(config.get(key, ""), str | None):
            raise CheckpointError(f"The `{key}` in the config.json of '{ref}' is not a string: {config[key]!r:.80}.")
    return config


def _no_folder(ref: ModelRef, folder: Path) -> CheckpointError:
    if folder.is_file():
        return CheckpointError(f"'{ref}' is a file.", hint=f"Name its folder: 'local:{Path(ref.location).parent}'.")
    return CheckpointError(f"'{ref}': the folder '{folder}' does not exist.", hint="Check the path.")


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        nested = config.get(key)
        if isinstance(nested, dict):
            table = cast("dict[str, Any]", nested)
            return _text_config(table) if key == "thinker_config" and "text_config" in table else table
    return {}


def _joined(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return ", ".join(item.strip() for item in cast("list[Any]", value) if isinstance(item, str))
    return ""
