"""Encoders of experts that do not lie among a checkpoint's tensors: those it only names, and ONNX graphs.

An entry with ``reference`` has no encoder tensors in the checkpoint: they are read, after loading, from the files of
another checkpoint, at one commit and with the digests that were seen when the composition was made. ``reference``:

- ``id``: a Hub id or a folder; ``commit``: the revision, or null for a folder.
- ``sha256``: file name -> SHA-256 of the file, or the digest of ``model.safetensors`` alone.
- ``prefix``: what stands before the encoder's own names in these files, "" unless given (``model.encoder.``).
- ``keys``: parameter -> whole name in these files, of those that the files spell otherwise; only where there are any.

An ONNX graph is a file: of the checkpoint itself (``experts/<name>.onnx``), or of what ``reference`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import cached_file

from .onnx_encoder import file_digest

__all__ = ["attach_graphs", "fetch_encoders", "referenced", "referenced_keys", "save_graphs"]

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def referenced(config: Any) -> Iterator[str]:
    """Yields the experts whose encoder's tensors are not in the checkpoint."""
    for name, entry in config.experts.items():
        if entry.get("reference") and "onnx" not in entry:
            yield name


def referenced_keys(model: Any, config: Any) -> list[str]:
    """Returns the names of all tensors of these encoders in a model."""
    starts = tuple(f"experts.{name}.encoder." for name in referenced(config))
    if not starts:
        return []
    return [key for key in model.state_dict() if key.removeprefix("model.").startswith(starts)]


@torch.no_grad()
def fetch_encoders(core: Any) -> None:
    """Fills the encoders of a ``ComposedModel`` that are not in its checkpoint.

    Raises:
        ValueError: A file's digest is another one, or a tensor is missing.
    """
    for name in referenced(core.config):
        reference = core.config.experts[name]["reference"]
        prefix, spelt = reference.get("prefix", ""), reference.get("keys", {})
        own = core.experts[name].encoder.state_dict()
        waiting = {spelt.get(inside, prefix + inside): target for inside, target in own.items()}
        for path in _files(name, reference):
            for key, tensor in load_state_dict(str(path), map_location="cpu").items():
                if key not in waiting:
                    continue
                target = waiting.pop(key)
                if target.shape != tensor.shape:
                    raise ValueError(f"{key} of {reference['id']} is {tuple(tensor.shape)}, not {tuple(target.shape)}.")
                target.copy_(tensor)
        if waiting:
            raise ValueError(
                f"{len(waiting)} tensors of the expert {name!r} are not in {reference['id']}, "
                f"{next(iter(waiting))} for one."
            )


def _files(name: str, reference: Mapping[str, Any]) -> Iterator[Path]:
    digests = reference["sha256"]
    if isinstance(digests, str):
        digests = {"model.safetensors": digests}
    for file, digest in digests.items():
        path = Path(str(cached_file(reference["id"], file, revision=reference.get("commit"))))
        found = file_digest(path)
        if found != digest:
            raise ValueError(
                f"{file} of {reference['id']} is not the file that the expert {name!r} was composed with: its SHA-256 "
                f"is {found}, not {digest}."
            )
        yield path


def attach_graphs(core: Any, where: Any, **kwargs: Any) -> None:
    """Gives the ONNX encoders of a ``ComposedModel`` their files.

    Args:
        core: The model.
        where: Its checkpoint: a folder or a Hub id.
        **kwargs: What ``from_pretrained`` was given; what tells it where to look counts here too.

    Raises:
        OSError: A file is not there.
        ValueError: A file is not the one that was composed.
    """
    for name, entry in core.config.experts.items():
        if "onnx" not in entry:
            continue
        hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        commit = kwargs.get("_commit_hash") or getattr(core.config, "_commit_hash", None)
        reference = entry.get("reference")
        if reference:
            hub.pop("subfolder", None)
            hub["revision"] = reference.get("commit")
        elif commit:
            hub["revision"] = commit  # that of the weights, should the branch have moved meanwhile
        source = reference["id"] if reference else where
        encoder = core.experts[name].encoder
        paths = {file: Path(str(cached_file(source, file, **hub))) for file in encoder.files}
        encoder.attach(paths, (reference or entry["onnx"])["sha256"])


def save_graphs(core: Any, folder: Any) -> None:
    """Writes the files of ONNX encoders beside a ``ComposedModel`` that is saved.

    Raises:
        ValueError: An encoder was never given its files.
    """
    for name, entry in core.config.experts.items():
        if "onnx" in entry and not entry.get("reference"):
            core.experts[name].encoder.save(Path(folder))
