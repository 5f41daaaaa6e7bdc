"""Frozen experts run once an item, not once an epoch: the counterpart of the towers' cache for domain experts.

An expert's ``encode`` is replaced while the cache is open: for items that are all on disk it returns what the encoder
gave for each of them alone, joined; otherwise the encoder runs. The projector behind it sees the same values. Only the
expert that an item's domain names is filled; where routing sends an item elsewhere, the encoder of that expert runs.

Letters: I items, T vectors of one item, E width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcompose.align.data.collator import Collator, expert_key_name, media_digest
from mcompose.align.features.encoder_identity import MIXES_ITEMS, encoder_identity, feature_key, features_match
from mcompose.align.features.store import FeatureStore

__all__ = ["ExpertCache"]

Encoded = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class _Frozen:
    """A frozen expert.

    Args:
        run: Its own ``encode``.
        identity: Stands for its weights, settings and processor.
        tried: What was made of the first items, until two were compared.
        refusal: Why it is not played back.
    """

    run: Callable[[Mapping[str, Any]], Encoded]
    identity: str
    tried: tuple[Any, ...] = ()
    refusal: str = ""


class ExpertCache:
    """Experts of a composed model whose encoders are frozen. Opened and closed by the towers' cache.

    Args:
        inner: The ``ComposedModel``.
        collator: Makes its batches.
        store: Store of cached features.
    """

    def __init__(self, inner: Any, collator: Collator, *, store: FeatureStore) -> None:
        self.inner, self.collator, self.store = inner, collator, store
        media = getattr(collator.processor, "expert_media", None)
        self._experts = {
            name: _Frozen(expert.encode, _identity(expert, media.processors.get(name)))
            for name, expert in (getattr(inner, "experts", None) or {}).items()
            if media is not None and not any(parameter.requires_grad for parameter in expert.encoder.parameters())
        }
        self._keys: dict[str, list[str]] = {}

    def open(self) -> None:
        """Puts the cache before the encoders."""
        for name, frozen in self._experts.items():
            self.inner.experts[name].encode = self._replaced(name, frozen)

    def close(self) -> None:
        """Gives the encoders back."""
        for name in self._experts:
            self.inner.experts[name].__dict__.pop("encode", None)

    def expect(self, keys: Mapping[str, torch.Tensor]) -> None:
        """Says which items the next forward pass holds.

        Args:
            keys: ``media_keys`` of the batch.
        """
        named = {name: keys.get(expert_key_name(name)) for name in self._experts}
        self._keys = {
            name: [self._key(name, row.cpu().numpy().tobytes()) for row in rows]
            for name, rows in named.items()
            if rows is not None
        }

    @torch.no_grad()
    def fill(self, name: str, modality: str, item: Any, *, mine: bool) -> bool | None:
        """Keeps an item's features. The first two items of an expert are also tried together.

        Args:
            name: The expert.
            modality: Modality of the item.
            item: Its file or bytes.
            mine: Whether this process is to store it.

        Returns:
            Whether it was stored; None where there is nothing to do.
        """
        frozen = self._experts.get(name)
        if frozen is None or frozen.refusal:
            return None
        if len(frozen.tried) < 2:
            self._try(name, frozen, modality, item)
        key = self._key(name, media_digest(item))
        if frozen.refusal or not mine or key in self.store:
            return None
        x_ITE, valid_IT = self._encoded(name, frozen, modality, [item])
        kept = {"features": x_ITE} | ({} if valid_IT is None else {"valid": valid_IT})
        return self.store.put(key, {name: tensor.contiguous() for name, tensor in kept.items()})

    @property
    def refused(self) -> dict[str, str]:
        """Expert -> why its items are encoded as ever."""
        return {name: frozen.refusal for name, frozen in self._experts.items() if frozen.refusal}

    def _try(self, name: str, frozen: _Frozen, modality: str, item: Any) -> None:
        frozen.tried = (*frozen.tried, item)
        if len(frozen.tried) < 2:
            return
        alone = [self._encoded(name, frozen, modality, [one]) for one in frozen.tried]
        together, _ = self._encoded(name, frozen, modality, list(frozen.tried))
        alike = {x_ITE.shape[1:] for x_ITE, _ in alone} == {together.shape[1:]}
        if not alike or not features_match(torch.cat([x_ITE for x_ITE, _ in alone]), together):
            frozen.refusal = MIXES_ITEMS

    def _encoded(self, name: str, frozen: _Frozen, modality: str, items: Sequence[Any]) -> Encoded:
        return frozen.run(self.collator.expert_inputs(name, modality, items))

    def _replaced(self, name: str, frozen: _Frozen) -> Callable[[Mapping[str, Any]], Encoded]:
        def encode(inputs: Mapping[str, Any]) -> Encoded:
            found = [] if frozen.refusal else [self.store.get(key) for key in self._keys.get(name, [])]
            stored = [item for item in found if item is not None]
            rows = next((len(value) for value in inputs.values() if isinstance(value, torch.Tensor)), 0)
            if not stored or not len(stored) == len(found) == rows:
                return frozen.run(inputs)
            device = next(self.inner.experts[name].projector.parameters()).device
            x_ITE = torch.cat([item["features"] for item in stored]).to(device)
            valid = [item["valid"] for item in stored if "valid" in item]
            return x_ITE, torch.cat(valid).to(device) if valid else None

        return encode

    def _key(self, name: str, content: bytes) -> str:
        return feature_key(content, self._experts[name].identity)


def _identity(expert: Any, processor: Any) -> str:
    return encoder_identity(expert.entry, processor, expert.encoder.state_dict().items())
