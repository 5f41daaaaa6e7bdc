"""The small files of a checkpoint: finds and copies them, and reads the model card.

Tokenizer, processor, chat template and generation config are copied with the weights. Code files (``*.py``) are listed
separately, because the caller must decide whether to copy code that it does not trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import yaml

from mcompose.checkpoint.headers import read_json_object
from mcompose.errors import CheckpointError
from mcompose.whole_files import whole_file

__all__ = [
    "SIDECAR_PATTERNS",
    "FileDigest",
    "check_inside",
    "code_files",
    "copy_file",
    "digest_file",
    "is_sidecar",
    "patch_json",
    "read_card",
    "sidecar_files",
]

SIDECAR_PATTERNS = (
    "tokenizer*",
    "*.tiktoken",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "spiece*",
    "tekken.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "audio_preprocessor_config.json",
    "feature_extractor_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "processors/*",
    "generation_config.json",
)
"""Names of the files that are copied with the weights. ``config.json`` is not: every output has its own. A composed
checkpoint has the files of its sources' processors under ``processors``."""

_NEVER = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.py",
    "*.pkl",
)
_MAX_CARD_BYTES = 256 * 1024
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """Size of a file in bytes, and the SHA-256 of its content in hex."""

    size: int
    sha256: str


def is_sidecar(name: str) -> bool:
    """Returns whether a file of this name (relative to the checkpoint, with ``/``) is copied with the weights."""
    if any(fnmatch(name, pattern) for pattern in _NEVER):
        return False
    return any(fnmatch(name, pattern) for pattern in SIDECAR_PATTERNS if ("/" in name) == ("/" in pattern))


def sidecar_files(folder: Path) -> list[Path]:
    """Returns the files that are copied with the weights, sorted by name."""
    paths = [
        path for pattern in ("*", "additional_chat_templates/*", "processors/**/*") for path in folder.glob(pattern)
    ]
    found = sorted(path for path in paths if path.is_file() and is_sidecar(path.relative_to(folder).as_posix()))
    for path in found:
        check_inside(path, folder)
    return found


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a link that leads out of its checkpoint: what it points to would be copied and published.

    Args:
        path: File of the checkpoint.
        folder: The checkpoint; links of the Hub's cache to the blobs of the same repository are inside.

    Raises:
        CheckpointError: The file is elsewhere.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and (home.parent.parent / "blobs").is_dir():
        home = home.parent.parent
    real = path.resolve()
    if not real.is_relative_to(home):
        raise CheckpointError(
            f"'{path}' is a link that leads out of its checkpoint, to '{real}'.",
            hint="Replace the link by the file, if it belongs to the checkpoint; else remove it.",
        )


def code_files(folder: Path) -> list[Path]:
    """Returns the checkpoint's Python files (which ``trust_remote_code`` would run), sorted by name."""
    return sorted(path for path in folder.glob("*.py") if path.is_file())


def digest_file(path: Path) -> FileDigest:
    """Hashes a file's content.

    Raises:
        CheckpointError: The file cannot be read.
    """
    sha256 = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as handle:
            while block := handle.read(_COPY_BYTES):
                sha256.update(block)
                size += len(block)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return FileDigest(size, sha256.hexdigest())


def copy_file(source: Path, target: Path) -> FileDigest:
    """Copies a file's content (links are followed, permissions and times are not copied).

    Args:
        source: The file.
        target: Path of the copy. Its folder is created, and an existing file is replaced.

    Returns:
        Size and hash of the copy.

    Raises:
        CheckpointError: The source cannot be read.
        StorageError: The target cannot be written.
    """
    try:
        reader = source.open("rb")
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}.") from error
    sha256 = hashlib.sha256()
    size = 0
    with reader, whole_file(target) as writer:
        while block := reader.read(_COPY_BYTES):
            writer.write(block)
            sha256.update(block)
            size += len(block)
    return FileDigest(size, sha256.hexdigest())


def patch_json(source: Path, changes: Mapping[str, Any]) -> str:
    """Returns the text of a JSON file with some of its top-level keys changed.

    Args:
        source: File with one JSON object.
        changes: Key to new value; None removes the key.

    Returns:
        The new text, in the order of the file, new keys last.

    Raises:
        CheckpointError: The file is not a JSON object.
    """
    table = read_json_object(source)
    table.update(changes)
    table = {key: value for key, value in table.items() if value is not None or key not in changes}
    return json.dumps(table, ensure_ascii=False, indent=2) + "\n"


def read_card(folder: Path) -> dict[str, Any]:
    """Reads the front matter of a checkpoint's ``README.md``; empty when it is missing or broken."""
    try:
        with (folder / "README.md").open("rb") as handle:
            text = handle.read(_MAX_CARD_BYTES).decode("utf-8-sig", errors="replace")
    except OSError:
        return {}
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        card = yaml.load("\n".join(lines[1:end]), Loader=_LOADER)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", card) if isinstance(card, dict) else {}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
