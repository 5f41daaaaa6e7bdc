"""Opens folders of ONNX graphs, which may be domain experts.

Such a folder needs neither ``config.json`` nor safetensors files, so it is opened by the names of its files. The config
of a composed checkpoint names its graphs. Names must be paths inside the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mcompose.checkpoint.headers import read_json_object
from mcompose.checkpoint.reader import Checkpoint
from mcompose.checkpoint.sidecar import check_inside, digest_file
from mcompose.checkpoint.stored import plain_path
from mcompose.errors import CheckpointError
from mcompose.refs import ModelRef

__all__ = ["ExpertFile", "open_files"]


@dataclass(frozen=True)
class ExpertFile:
    """A file of an expert that is copied unchanged.

    Args:
        path: Path of the file.
        name: Path in the output, with ``/``.
        sha256: SHA-256 of its content, in hex.
    """

    path: Path
    name: str
    sha256: str


def open_files(ref: ModelRef, names: Iterable[str] = (), *, relative_to: Path = Path()) -> Checkpoint:
    """Opens a folder by the names of some files, whatever other files it has.

    Args:
        ref: Reference of the folder, local or on the Hub.
        names: Files that must exist; they are fetched, together with the small files of the folder.
        relative_to: Folder that relative paths start from.

    Returns:
        A checkpoint without tensors, whose weight files are these files, with their digests.

    Raises:
        CheckpointError: The folder or a file does not exist.
        HubError: The Hub refused, or could not be reached.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if not plain_path(name):
            raise CheckpointError(f"'{name}' is not a file in '{ref}': the path leads out of the folder.")
    if ref.kind == "hub":
        from mcompose.checkpoint import hub  # noqa: PLC0415 - a network library, for Hub references only

        snapshot = hub.fetch(ref, weights=True, files=wanted)
        folder, commit, present = snapshot.folder, snapshot.commit, sorted(snapshot.files)
    else:
        folder, commit = ref.path(relative_to), None
        if not folder.is_dir():
            raise CheckpointError(f"'{ref}': the folder '{folder}' does not exist.", hint="Check the path.")
        present = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in wanted:
        if not (folder / name).is_file():
            alike = [repr(other) for other in present if other.endswith(Path(name).suffix or name)][:5]
            hint = f"It contains {', '.join(alike)}." if alike else "Check the spelling."
            raise CheckpointError(f"'{ref}' does not contain the file '{name}'.", hint=hint)
    for name in wanted:
        check_inside(folder / name, folder)
    config = folder / "config.json"
    table = read_json_object(config) if config.is_file() else {}
    digests = {name: digest_file(folder / name).sha256 for name in wanted}
    return Checkpoint(ref, folder, commit, cast("dict[str, Any]", table), {}, wanted, digests=digests)
