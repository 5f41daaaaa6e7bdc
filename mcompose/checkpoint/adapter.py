"""PEFT adapters (LoRA and variants), folded into the weights that they were trained on.

``open_adapter`` reads headers only. ``Adapter.bind`` finds the base's tensor for every tensor of the adapter, and
refuses the adapter when one cannot be matched: it is folded completely or not at all. ``fold_for`` then returns the
change of one key. Adapters that cannot be folded exactly are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mcompose.checkpoint.adapter_keys import ADAPTER_SUFFIXES, KeyFinder, is_copy, is_frozen, split_key
from mcompose.checkpoint.fold import LowRank
from mcompose.checkpoint.headers import Header, parse_header, read_header, read_json_object
from mcompose.checkpoint.snapshot import HubSnapshot
from mcompose.checkpoint.tensor import MERGEABLE_DTYPES, TensorEntry
from mcompose.errors import CheckpointError
from mcompose.refs import ModelRef

__all__ = ["ADAPTER_FILE", "Adapter", "open_adapter"]

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_REFUSED = {
    "layer_replication": "it repeats layers, which changes the network",
    "target_parameters": "it adapts fused expert weights",
    "trainable_token_indices": "it trains single token rows",
    "alora_invocation_tokens": "it is active in a part of the text only",
    "arrow_config": "it chooses between adapters at run time",
    "use_qalora": "it belongs to a quantised base",
    "use_bdlora": "its factors are block-diagonal",
    "velora_config": "its factors are compressed",
    "kasa_config": "its factors are not a plain product",
    "monteclora_config": "its factors are sampled",
}
"""Settings of PEFT whose result is not ``W + s * B @ A``, to the reason for the message."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract a part from the base's weights; the adapter fits only the remaining weights."""


@dataclass(frozen=True)
class Adapter:
    """An adapter whose headers were read and checked.

    Args:
        ref: Reference, as the user wrote it.
        folder: Folder of the files.
        commit: Commit of a Hub adapter; None for a local one.
        config: Content of ``adapter_config.json``.
        tensors: Key in the adapter's file to entry, without the copies of one tensor that PEFT does not load.
        folds: Key in the base to its change; empty before ``bind``.
        unties: True when training kept two tables where the base has one for embedding and head.
    """

    ref: ModelRef
    folder: Path
    commit: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    folds: Mapping[str, LowRank] = field(default_factory=dict)
    unties: bool = False

    def bind(self, base: Mapping[str, TensorEntry], *, tied: tuple[str, str] | None = None) -> Adapter:
        """Matches the adapter to the checkpoint that it is folded into.

        Where the base has one table for embedding and head, PEFT trains each on its own: the other keeps the base's
        values, unless ``ensure_weight_tying`` held them together. A frozen table that PEFT wrote is that of both.

        Args:
            base: Key to entry of the checkpoint: ``Checkpoint.tensors``.
            tied: Keys of embedding and head where the embedding is the head; the base does not hold the second.

        Returns:
            The adapter with one fold for each key that it changes.

        Raises:
            CheckpointError: A tensor of the adapter fits none or several of the base's tensors, or its shape differs.
        """
        if tied is not None:
            base = {**base, tied[1]: replace(base[tied[0]], key=tied[1])}
        finder = KeyFinder(base, str(self.ref))
        pieces: dict[str, dict[str, TensorEntry]] = {}
        modules: dict[str, str] = {}
        for key, entry in self.tensors.items():
            module, role = split_key(key)
            target = finder.find(module, ADAPTER_SUFFIXES[role])
            if target is None:
                continue
            if role in pieces.setdefault(target, {}):
                raise CheckpointError(f"The adapter '{self.ref}' changes '{target}' twice.")
            pieces[target][role] = entry
            modules[target] = module
        finder.raise_unmatched()
        unties = tied is not None and self._unties(pieces, modules, tied)
        conv1d = self._is_transposed(pieces, base)
        folds = {key: self._fold(base[key], modules[key], roles, conv1d=conv1d) for key, roles in pieces.items()}
        return replace(self, folds=folds, unties=unties)

    def _unties(
        self, pieces: dict[str, dict[str, TensorEntry]], modules: dict[str, str], tied: tuple[str, str]
    ) -> bool:
        """Returns whether embedding and head differ after training; completes or removes the pieces of the head."""
        touched = [key for key in tied if key in pieces]
        if not touched:
            return False
        embedding, head = tied
        scales = [self.scale_of(modules[key]) for key in touched]
        if self.config.get("ensure_weight_tying") and embedding in pieces and scales[0] == scales[-1]:
            pieces.pop(head, None)  # the same change again, transposed where it is low-rank
            return False
        if len(touched) == 1:
            (one,) = touched
            frozen = pieces[one].get("replacement")
            if frozen is not None and is_frozen(frozen.key):
                other = head if one == embedding else embedding
                pieces[other], modules[other] = {"replacement": frozen}, modules[one]
        return True

    def fold_for(self, key: str) -> LowRank | None:
        """Returns the change of a key of the base; None when it does not change. Call ``bind`` first."""
        if not self.folds:
            raise RuntimeError("bind() the adapter to its base first.")
        return self.folds.get(key)

    def unused(self) -> tuple[str, ...]:
        """Returns the keys of adapter tensors that no fold uses; empty after ``bind``."""
        entries = [
            entry
            for fold in self.folds.values()
            for entry in (fold.a, fold.b, fold.magnitude, fold.replacement, fold.addend)
            if entry is not None
        ]
        used = {entry.key for entry in entries}
        return tuple(key for key in self.tensors if key not in used)

    def _fold(self, base: TensorEntry, module: str, roles: Mapping[str, TensorEntry], *, conv1d: bool) -> LowRank:
        embedding = "embedding_A" in roles or "embedding_B" in roles
        a, b = roles.get("embedding_A" if embedding else "A"), roles.get("embedding_B" if embedding else "B")
        magnitude = roles.get("magnitude")
        fold = LowRank(
            base.key,
            base.shape,
            a,
            b,
            scale=self.scale_of(module, None if a is None else (*a.shape, 0)[0]),
            transposed=embedding or conv1d,
            magnitude=magnitude,
            replacement=roles.get("replacement"),
            addend=roles.get("addend"),
        )
        self._check_fold(base, fold, roles)
        return fold

    def _check_fold(self, base: TensorEntry, fold: LowRank, roles: Mapping[str, TensorEntry]) -> None:
        reason = next(
            (f"'{entry.key}' is {entry.dtype}" for entry in (base, *roles.values()) if not _is_mergeable(entry)),
            fold.fault(),
        )
        if reason:
            whole = fold.replacement
            added = whole is not None and whole.shape[1:] == base.shape[1:] and whole.shape[:1] > base.shape[:1]
            raise CheckpointError(
                f"The adapter '{self.ref}' cannot be folded into '{base.key}': {reason}.",
                hint="Tokens were added before its training: resize the base's tables as then (transformers' "
                "`resize_token_embeddings`), save it with the adapter's tokenizer, and name that folder."
                if added
                else "Check that the adapter was trained on this checkpoint.",
            )

    def scale_of(self, module: str, rank: int | None = None) -> float:
        """Returns alpha / rank (rsLoRA: alpha / sqrt(rank)), with the module's values where patterns set them.

        Args:
            module: Path of the module in memory.
            rank: Rank of its factors, which must be the config's; None where it has none.

        Raises:
            CheckpointError: The factors have another rank than the config says.
        """
        told = _patterned(self.config, "rank_pattern", module, default=self.config.get("r", 8))
        alpha = _patterned(self.config, "alpha_pattern", module, default=self.config.get("lora_alpha", 8))
        if rank is not None and rank != told:
            raise CheckpointError(
                f"The adapter '{self.ref}' has rank {told} for '{module}', but its factors have rank {rank}."
            )
        return alpha / (told**0.5 if self.config.get("use_rslora") else told)

    def _is_transposed(self, pieces: Mapping[str, Mapping[str, TensorEntry]], base: Mapping[str, TensorEntry]) -> bool:
        """Returns whether linear layers are stored as (inputs, outputs).

        The shapes decide, because PEFT itself overrides a wrong config; the config decides when all are square.
        """
        for key, roles in pieces.items():
            if "A" in roles and "B" in roles and len(base[key].shape) == 2:
                product = (roles["B"].shape[0], roles["A"].shape[-1])
                if product[0] != product[1]:
                    return base[key].shape == product[::-1]
        return bool(self.config.get("fan_in_fan_out"))


def open_adapter(
    ref: ModelRef | Path, *, relative_to: Path = Path(), weights: bool = True, token: str | None = None
) -> Adapter:
    """Opens a PEFT adapter: reads and checks its config and header.

    Args:
        ref: A reference, or the path of a folder.
        relative_to: Folder that relative paths start from: the recipe's folder.
        weights: Whether to fetch the weights from the Hub; False fetches only the header.
        token: Hub token; default: the token of the environment.

    Returns:
        The adapter, without folds; call ``bind`` next.

    Raises:
        CheckpointError: The adapter is missing, broken, a pickle, or of a kind that cannot be folded exactly.
        HubError: The Hub refused, or could not be reached.
    """
    ref = ModelRef("local", str(ref)) if isinstance(ref, Path) else ref
    if ref.kind == "hub":
        from mcompose.checkpoint import hub  # noqa: PLC0415 - a network library, for Hub references only

        snapshot = hub.fetch(ref, weights=weights, token=token)
    else:
        snapshot = HubSnapshot(ref.path(relative_to), "")
    config_path = snapshot.folder / CONFIG
    if not config_path.exists():
        hint = "Name the folder of a PEFT adapter."
        raise CheckpointError(f"The adapter '{ref}' does not have {CONFIG}.", hint=hint)
    config = read_json_object(config_path)
    _check_config(config, str(ref))
    header = _header(ref, snapshot)
    if not header.entries:
        raise CheckpointError(f"The adapter '{ref}' does not contain tensors.")
    tensors = {entry.key: entry for entry in header.entries}
    tensors = {key: entry for key, entry in tensors.items() if not is_copy(key, tensors)}
    return Adapter(ref, snapshot.folder, snapshot.commit or None, config, tensors)


def _header(ref: ModelRef, snapshot: HubSnapshot) -> Header:
    path = snapshot.folder / ADAPTER_FILE
    if snapshot.headers is not None and ADAPTER_FILE in snapshot.headers:
        return parse_header(snapshot.headers[ADAPTER_FILE], file=path, size=snapshot.files[ADAPTER_FILE])
    if not path.exists():
        if (snapshot.folder / "adapter_model.bin").exists() or "adapter_model.bin" in snapshot.files:
            raise CheckpointError(
                f"The adapter '{ref}' is a pickle (adapter_model.bin), which can run code and is never opened.",
                hint="If you trust it, load it with PEFT and save it again with `model.save_pretrained(DIR)`.",
            )
        raise CheckpointError(f"The adapter '{ref}' does not have {ADAPTER_FILE}.")
    return read_header(path)


def _check_config(config: Mapping[str, Any], ref: str) -> None:
    kind = config.get("peft_type")
    reason = "" if kind == "LORA" else f"it is of type {kind!a}, and only LORA can be folded"
    reason = reason or next((text for key, text in _REFUSED.items() if config.get(key)), "")
    start = config.get("init_lora_weights")
    if not reason and isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        reason = f"it was initialised with '{start}', which changes the base's weights"
    numbers = {key: config.get(key, 8) for key in ("r", "lora_alpha")}
    for key, value in numbers.items():
        if not _is_positive(value):
            reason = reason or f"its '{key}' must be a positive number, not {value!a}"
    if reason:
        raise CheckpointError(f"The adapter '{ref}' cannot be folded: {reason}.", hint=_USE_PEFT)


def _patterned(config: Mapping[str, Any], key: str, module: str, *, default: float) -> float:
    """Returns a setting's value for a module: that of the first pattern that matches the end of its path."""
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"The adapter's '{key}' is not a table.")
    for pattern, value in cast("dict[str, Any]", table).items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(f"The adapter's '{key}' has the invalid pattern {pattern!a}: {error}.") from error
        if matches:
            if not _is_positive(value):
                raise CheckpointError(f"The adapter's '{key}' must be positive for {pattern!a}, not {value!a}.")
            return value
    return default


def _is_mergeable(entry: TensorEntry) -> bool:
    return entry.dtype in MERGEABLE_DTYPES


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


_USE_PEFT = "Fold it with PEFT (merge_and_unload) and write the result as `model`."
