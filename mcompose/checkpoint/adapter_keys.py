"""Matches an adapter's tensors to tensors of its base.

An adapter names modules as they were in memory during training; a checkpoint names them as its author's version of
transformers did. The two differ only in wrappers (``language_model.model.layers.0`` and
``model.language_model.layers.0``), so names are compared without the wrappers' words, and a match must be unique.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from mcompose.errors import CheckpointError

__all__ = ["ADAPTER_SUFFIXES", "PEFT_PREFIX", "KeyFinder", "is_copy", "is_frozen", "split_key"]

ADAPTER_SUFFIXES = {
    "A": "weight",
    "B": "weight",
    "addend": "bias",
    "embedding_A": "weight",
    "embedding_B": "weight",
    "magnitude": "weight",
    "replacement": "",
}
"""Role of an adapter's tensor to the tensor of its module that it changes; a replacement's path names the tensor."""

_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "addend",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
PEFT_PREFIX = "base_model.model."
_WRAPPERS = {"model", "language_model", "text_model", "vision_model", "transformer", "thinker", "llm"}
_SHOWN = 5


def split_key(key: str) -> tuple[str, str]:
    """Splits an adapter's key into module and role.

    Args:
        key: Key in the adapter's file.

    Returns:
        Path of the module in memory and the role of the tensor; for a replacement, the path of the tensor.
    """
    path = key.removeprefix(PEFT_PREFIX)
    for ending, role in _ENDINGS.items():
        if path.endswith(ending):
            return path.removesuffix(ending), role
    return path.replace(".base_layer.", ".").replace(".modules_to_save.", "."), "replacement"


def is_frozen(key: str) -> bool:
    """Returns whether a tensor is the base's own, which training did not change and PEFT wrote beside the factors."""
    return ".base_layer." in key


def is_copy(key: str, keys: Container[str]) -> bool:
    """Returns whether PEFT does not load a tensor: where tokens were added it writes a table up to three times.

    ``X.weight`` is what it loads, ``X.modules_to_save.weight`` the same again, and ``X.original_module.weight`` the
    table before training.

    Args:
        key: Key in the adapter's file.
        keys: All keys of the file.
    """
    plain = key.replace(".modules_to_save.", ".").replace(".original_module.", ".")
    return plain != key and plain in keys


class KeyFinder:
    """Finds keys of the base by the paths of an adapter, and collects paths without a unique match.

    Args:
        keys: Keys of the base.
        adapter: Reference of the adapter, for messages.
    """

    def __init__(self, keys: Iterable[str], adapter: str) -> None:
        self._adapter = adapter
        self._keys = {key: key for key in keys}
        self._core: dict[tuple[str, ...], list[str]] = {}
        for key in self._keys:
            self._core.setdefault(_core(key), []).append(key)
        self._missing: list[str] = []
        self._ambiguous: list[str] = []

    def find(self, module: str, suffix: str) -> str | None:
        """Returns the base's key for a module's tensor; None, and records the path, when there is no unique one.

        Args:
            module: Path in memory.
            suffix: ``weight`` or ``bias``; empty when the path is already a tensor's.
        """
        path = f"{module}.{suffix}" if suffix else module
        if path in self._keys:
            return path
        candidates = self._core.get(_core(path), [])
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            self._ambiguous.append(f"{path} ({', '.join(candidates)})")
        else:
            self._missing.append(path)
        return None

    def raise_unmatched(self) -> None:
        """Refuses an adapter with paths that were not matched.

        Raises:
            CheckpointError: A path was not found, or fits several keys.
        """
        for paths, verb in ((self._missing, "do not fit a tensor"), (self._ambiguous, "fit several tensors")):
            if paths:
                more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
                raise CheckpointError(
                    f"Tensors of the adapter '{self._adapter}' {verb} of its base: {', '.join(paths[:_SHOWN])}{more}.",
                    hint="Check that it was trained on this checkpoint; an adapted head needs a head in the base.",
                )


def _core(path: str) -> tuple[str, ...]:
    return tuple(word for word in path.split(".") if word not in _WRAPPERS)
