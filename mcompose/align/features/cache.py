"""Runs frozen encoders once per item instead of once per epoch: their outputs are cached on disk and replayed.

The network is not changed. Around each frozen module that stands directly in a tower (an encoder; a projector too when
it is frozen; every encoder of a mix) its ``forward`` is replaced while the cache is open. For a batch whose items are
all on disk it returns what the module gave for each of them alone, joined along the first dimension; for any other
batch it runs. The trained part of the tower sees the same values and gets the same gradients.

Of a module's outputs only those are kept that the tower's features depend on, which one backward pass tells: of 25
hidden states usually one. Whether a module treats its items apart from each other is tried on the first two.

An item's key is made of its file's bytes, the settings of its source's processor, and the bytes of the frozen modules,
so a changed file, size or encoder is another item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mcompose.align.data.collator import Collator, media_digest
from mcompose.align.data.samples import Sample
from mcompose.align.features.encoder_identity import MIXES_ITEMS, encoder_identity, feature_key, features_match
from mcompose.align.features.expert_cache import ExpertCache
from mcompose.align.features.store import FeatureStore
from mcompose.errors import RequestError

__all__ = ["CacheReport", "FeatureCache"]


@dataclass
class CacheReport:
    """Result of filling the cache.

    Args:
        items: Media in the data, each file once.
        found: Media that were on disk already.
        stored: Media that were encoded and stored.
        refused: Media that did not fit on the disk.
        uncached: Modality or expert -> reason why its items are not cached.
    """

    items: int = 0
    found: int = 0
    stored: int = 0
    refused: int = 0
    uncached: dict[str, str] = field(default_factory=dict)


@dataclass
class _Point:
    """A frozen module of a tower, and the form of its output for one modality.

    Args:
        module: The module.
        run: Its own forward.
        replaced: A forward that somebody else had put in its place; None for the class's.
        spec: How its output nests; None before it was seen.
        leaves: Its output's values for one item.
        kept: Which of them the features depend on.
    """

    module: nn.Module
    run: Callable[..., Any]
    replaced: Callable[..., Any] | None = None
    spec: TreeSpec | None = None
    leaves: list[Any] = field(default_factory=list)
    kept: tuple[int, ...] = ()


@dataclass
class _Tower:
    """A source's frozen modules, and what is known of the one modality that they are cached for."""

    points: dict[str, _Point]
    identity: str
    modality: str = ""
    calls: list[tuple[str, tuple[list[Any], TreeSpec]]] = field(default_factory=list)
    mode: str = "run"
    stored: list[dict[str, torch.Tensor]] = field(default_factory=list)


class FeatureCache(AbstractContextManager["FeatureCache"]):
    """Plays encoders' outputs back while it is open (``with cache: ...``).

    Args:
        model: A composed model, ``requires_grad`` set as it will be trained; it may be wrapped.
        collator: Makes its batches; with ``media_keys``, since batches say by them which items they hold.
        store: Store of cached outputs.

    Raises:
        RequestError: The model has no towers, or the collator gives no keys.
    """

    def __init__(self, model: nn.Module, collator: Collator, *, store: FeatureStore) -> None:
        inner = next((m for m in model.modules() if hasattr(m, "towers") and hasattr(m, "media_inputs")), None)
        if inner is None:
            raise RequestError("Features can be cached for composed checkpoints only.")
        if not collator.media_keys:
            raise RequestError("The collator must be made with media_keys=True for cached features.")
        self.inner: Any = inner
        self.collator, self.store = collator, store
        self._towers = {
            name: _Tower(points, identity)
            for name, tower in self.inner.towers.items()
            if (points := _frozen_children(tower))
            for identity in [_identity(points, tower, collator.processor.processors.get(name))]
        }
        self._experts = ExpertCache(self.inner, collator, store=store)
        self._hooks: list[Any] = []

    def __enter__(self) -> FeatureCache:
        for name, tower in self._towers.items():
            for child, point in tower.points.items():
                point.module.forward = self._replaced(name, child)
        self._experts.open()
        self._hooks = [
            self.inner.register_forward_pre_hook(self._before, with_kwargs=True),
            self.inner.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._experts.close()
        for tower in self._towers.values():
            for point in tower.points.values():
                if point.replaced is None:
                    point.module.__dict__.pop("forward", None)
                else:
                    point.module.forward = point.replaced

    # filling

    @torch.no_grad()
    def fill(self, samples: Iterable[Sample], *, share: tuple[int, int] = (0, 1)) -> CacheReport:
        """Encodes the items that are not on disk yet, one at a time. The cache must be open.

        Args:
            samples: The data, such as ``mixture.samples()``.
            share: (number, count) of this process, which takes its part of the items.

        Returns:
            What was done.
        """
        report = CacheReport()
        was = {module: module.training for module in self.inner.modules()}
        self.inner.eval()
        first: dict[str, list[Any]] = {}
        seen: set[str] = set()
        for modality, item, expert in self._items(samples):
            source = str(self.inner.config.served_by(modality))
            content = media_digest(item).hex()
            if expert is not None and f"{expert} {content}" not in seen:
                seen.add(f"{expert} {content}")
                stored = self._experts.fill(expert, modality, item, mine=int(content, 16) % share[1] == share[0])
                report.stored += stored is True
                report.refused += stored is False
            tower = self._towers.get(source)
            if content in seen or tower is None or modality in report.uncached:
                continue
            seen.add(content)
            first.setdefault(modality, []).append(item)
            if len(first[modality]) <= 2 and (why := self._prepare(tower, modality, first[modality])):
                report.uncached[modality] = why
                continue
            report.items += 1
            if (report.items - 1) % share[1] == share[0]:
                self._fill_one(tower, modality, item, report)
        report.uncached |= self._experts.refused
        for module, training in was.items():
            module.training = training
        return report

    def _items(self, samples: Iterable[Sample]) -> Iterable[tuple[str, Any, str | None]]:
        """Modality, medium, and the expert that it goes to."""
        for sample in samples:
            for modality, items in sample.media().items():
                expert = self.collator.expert_of(sample, modality)
                for item in items:
                    yield modality, item, expert

    def _fill_one(self, tower: _Tower, modality: str, item: Any, report: CacheReport) -> None:
        key = _key(tower, media_digest(item))
        if key in self.store:
            report.found += 1
            return
        recorded = self._record(tower, modality, [item])
        kept = {
            f"{child}/{index}": recorded[child][0][index].contiguous()
            for child, point in tower.points.items()
            for index in point.kept
        }
        stored = self.store.put(key, kept)
        report.stored += stored
        report.refused += not stored

    def _record(self, tower: _Tower, modality: str, items: list[Any]) -> dict[str, tuple[list[Any], TreeSpec]]:
        """Returns the outputs of each point for some items, flat."""
        tower.mode, tower.calls = "record", []
        self._features(modality, items)
        tower.mode = "run"
        names = [child for child, _ in tower.calls]
        if sorted(names) != sorted(set(names)):
            raise _NotCachedError("a frozen module is run more than once for an item")
        return dict(tower.calls)

    def _features(self, modality: str, items: list[Any]) -> torch.Tensor:
        inputs = self.collator.media_inputs(modality, items)
        device = self.inner.device
        moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        made = self.inner.encode_media(self.inner.media_inputs(moved))[modality]
        return torch.cat([made.x_ND, *made.deepstack], dim=-1) if made.deepstack else made.x_ND

    def _prepare(self, tower: _Tower, modality: str, items: list[Any]) -> str:
        """Learns the form of the outputs from the first item, tries two together; says why it cannot be done."""
        if tower.modality not in ("", modality):
            return f"its source's frozen modules are cached for {tower.modality}"
        try:
            if len(items) == 1:
                self._learn(tower, modality, items[0])
            else:
                self._try(tower, modality, items)
        except _NotCachedError as error:
            tower.modality = ""
            return str(error)
        return ""

    def _learn(self, tower: _Tower, modality: str, item: Any) -> None:
        recorded = self._record(tower, modality, [item])
        for child, point in tower.points.items():
            point.leaves, point.spec = recorded.get(child, ([], None))
            tensors = [i for i, leaf in enumerate(point.leaves) if torch.is_tensor(leaf)]
            point.kept = tuple(i for i in tensors if point.leaves[i].ndim)
        tower.modality = modality
        with torch.enable_grad():
            every = {(c, i): point.leaves[i] for c, point in tower.points.items() for i in point.kept}
            probes = {at: x.detach().clone().requires_grad_() for at, x in every.items() if x.is_floating_point()}
            stored = {f"{child}/{index}": leaf for (child, index), leaf in {**every, **probes}.items()}
            total = self._played(tower, modality, [item], [stored]).sum()
            if not total.requires_grad:
                return
            gradients = torch.autograd.grad(total, list(probes.values()), allow_unused=True)
        unused = {where for where, gradient in zip(probes, gradients, strict=True) if gradient is None}
        # A router reads the last hidden state, an output's first value, without a gradient.
        read = {0} if modality in (getattr(self.inner.config, "routers", None) or {}) else set()
        for child, point in tower.points.items():
            point.kept = tuple(index for index in point.kept if (child, index) not in unused or index in read)

    def _played(
        self, tower: _Tower, modality: str, items: list[Any], stored: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        tower.mode, tower.stored = "play", stored
        try:
            return self._features(modality, items)
        finally:
            tower.mode, tower.stored = "run", []

    def _try(self, tower: _Tower, modality: str, items: list[Any]) -> None:
        alone = []
        for item in items:
            recorded = self._record(tower, modality, [item])
            alone.append({f"{c}/{i}": recorded[c][0][i] for c, point in tower.points.items() for i in point.kept})
        wanted, found = self._features(modality, items), self._played(tower, modality, items, alone)
        if not features_match(found, wanted):
            raise _NotCachedError(MIXES_ITEMS)

    # playing

    def _replaced(self, name: str, child: str) -> Callable[..., Any]:
        tower = self._towers[name]
        point = tower.points[child]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if tower.mode == "play" and point.spec is not None:
                joined = _joined(point, child, tower.stored)
                if joined is not None:
                    return joined
            output = point.run(*args, **kwargs)
            if tower.mode == "record":
                tower.calls.append((child, tree_flatten(output)))  # now: some towers put their features into it
            return output

        return forward

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        keys: Mapping[str, torch.Tensor] = kwargs.pop("media_keys", None) or {}
        self._experts.expect(keys)
        present = self.inner.media_inputs(kwargs) if keys else {}
        for name, tower in self._towers.items():
            mine = [modality for modality in present if self.inner.config.served_by(modality) == name]
            if mine == [tower.modality]:
                found = [self.store.get(_key(tower, _bytes(row))) for row in keys[tower.modality]]
                if all(found):
                    stored = [item for item in found if item]
                    if _alike(stored):
                        tower.mode, tower.stored = "play", stored
        return args, kwargs

    def _after(self, *_: Any) -> None:
        for tower in self._towers.values():
            tower.mode, tower.stored = "run", []
        self._experts.expect({})


class _NotCachedError(RequestError):
    """Why a modality's items are not cached."""


def _frozen_children(tower: nn.Module) -> dict[str, _Point]:
    found = {}
    stated = getattr(tower, "frozen_parts", None)
    for name, child in tower.named_children() if stated is None else stated().items():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found[name] = _Point(child, child.forward, child.__dict__.get("forward"))
    return found


def _identity(points: Mapping[str, _Point], tower: Any, processor: Any) -> str:
    weights = (
        (f"{name}.{key}", tensor) for name, point in points.items() for key, tensor in point.module.state_dict().items()
    )
    return encoder_identity(tower.config.to_dict(), processor, weights)


def _key(tower: _Tower, content: bytes) -> str:
    return feature_key(content, tower.identity + tower.modality)


def _bytes(row: torch.Tensor) -> bytes:
    return row.cpu().numpy().tobytes()


def _alike(stored: list[dict[str, torch.Tensor]]) -> bool:
    """Returns whether items can be joined: the same tensors, differing in their first dimension only."""
    shapes = [{name: tensor.shape[1:] for name, tensor in item.items()} for item in stored]
    return all(shape == shapes[0] for shape in shapes)


def _joined(point: _Point, child: str, stored: list[dict[str, torch.Tensor]]) -> Any:
    """Returns a point's output for several items; outputs that nothing depends on are zeros without memory."""
    leaves = []
    for index, leaf in enumerate(point.leaves):
        name = f"{child}/{index}"
        if name in stored[0]:
            values = [item[name] for item in stored]
            # A frozen encoder runs without gradients, through which no dependence could be learnt.
            with torch.set_grad_enabled(torch.is_grad_enabled() or any(value.requires_grad for value in values)):
                leaves.append(torch.cat(values).to(leaf.device, leaf.dtype))
        elif torch.is_tensor(leaf) and leaf.ndim:
            leaves.append(leaf.new_zeros(()).expand(leaf.shape[0] * len(stored), *leaf.shape[1:]))
        else:
            leaves.append(leaf)
    assert point.spec is not None
    return tree_unflatten(leaves, point.spec)
