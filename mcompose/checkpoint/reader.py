"""A checkpoint on disk: its config, and where each of its tensors lies.

Opening reads the headers of the weight files and the config, never a weight; torch and the safetensors
library are not needed. Files are found as transformers finds them: ``model.safetensors``, else the index,
else the one other safetensors file. A pickle is never opened.

An index may name plain files of its own folder only. The name decides, not where a link leads: the Hub's
cache is made of links into its store of blobs, and a user may link a shard as well.
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
        ref: Where it lives, as the user wrote it.
        folder: Its files. Without weights (Hub only), ``config.json`` and the sidecars alone.
        commit: Commit of a Hub checkpoint; None for a local one.
        config: ``config.json`` as it is.
        tensors: Key to entry: files by name, within a file in the order of the data.
        weight_files: Names of the weight files, sorted.
        metadata: ``__metadata__`` of the first weight file.
        has_weights: False when only headers were fetched.
        digests: Name to sha256 in hex of the large files, as the Hub states it.
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
        """Front matter of the model card; empty when there is none."""
        return read_card(self.folder)

    @property
    def licence(self) -> str:
        """Licence of the model card, by its own name when the card says ``other``; empty without one."""
        licence = _joined(self.card.get("license"))
        return _joined(self.card.get("license_name")) or licence if licence == "other" else licence

    @property
    def base_model(self) -> str:
        """Base model of the model card; several are joined by commas; empty when it states none."""
        return _joined(self.card.get("base_model"))

    @property
    def model_type(self) -> str:
        """Transformers' model type; empty when the config has none."""
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
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key to shape, in the order of ``tensors``: what ``read_anatomy`` takes."""
        return {key: entry.shape for key, entry in self.tensors.items()}

    def sidecars(self) -> list[Path]:
        """Tokenizer, processor, templates and generation config, sorted by name."""
        return sidecar_files(self.folder)

    def graphs(self) -> list[Path]:
        """ONNX graphs of experts that a composed checkpoint holds beside its tensors, sorted by name."""
        return sorted(self.folder / name for name in stored_graphs(self.config))

    def code(self) -> list[Path]:
        """The checkpoint's own Python files, sorted by name; they are never run by mcompose."""
        return code_files(self.folder)


def open_checkpoint(
    ref: ModelRef | Path, *, relative_to: Path = Path(), weights: bool = True, token: str | None = None
) -> Checkpoint:
    """Opens a checkpoint: reads and checks its config and the headers of its weight files.

    Args:
        ref: A reference, or the path of a folder.
        relative_to: Folder that relative paths start from: the recipe's own.
        weights: Whether the weights will be read. False fetches only headers from the Hub; local folders do
            not care.
        token: Hub token; by default the one of the environment.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: Something is missing, broken or unsafe; the message names the file.
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
    """Whether the head is the embedding.

    The language model's own setting decides, then the outer one. A config that is silent is tied when no head
    is stored: transformers' default differs from class to class, and an untied head would have to be there.

    Args:
        config: ``config.json``.
        keys: Keys of the checkpoint; needed only when the config is silent.
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
                    f"Tensor '{entry.key}' of '{ref}' stands in two files: "
                    f"'{tensors[entry.key].file.name}' and '{name}'."
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
    """The index and the files must tell the same story."""
    if weight_map is None:
        return
    for key, filename in weight_map.items():
        if key not in tensors or tensors[key].file.name != filename:
            raise CheckpointError(
                f"The index of '{ref}' places '{key}' in '{filename}', which does not hold it.",
                hint="Files of two checkpoints may be mixed up; fetch them again.",
            )
    for key, entry in tensors.items():
        if key not in weight_map:
            raise CheckpointError(
                f"'{entry.file.name}' of '{ref}' holds '{key}', which the index does not know.",
                hint="Files of two checkpoints may be mixed up; fetch them again.",
            )


def _read_config(folder: Path, ref: str) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        own = "params.json" if (folder / "params.json").exists() else ""
        raise CheckpointError(
            f"'{ref}' has no config.json.",
            hint=f"It has a '{own}': convert it to the Hugging Face format first." if own else
            "Is it a Hugging Face checkpoint?",
        )  # fmt: skip
    config = read_json_object(folder / "config.json")
    for key in ("model_type", "_name_or_path"):
        if not isinstance(config.get(key, ""), str | None):
            raise CheckpointError(f"The `{key}` of '{ref}' is not a name in its config.json: {config[key]!r:.80}.")
    return config


def _no_folder(ref: ModelRef, folder: Path) -> CheckpointError:
    if folder.is_file():
        return CheckpointError(f"'{ref}' is a file.", hint=f"Name its folder: 'local:{Path(ref.location).parent}'.")
    return CheckpointError(f"'{ref}' is not there: no folder '{folder}'.", hint="Check the path.")


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
