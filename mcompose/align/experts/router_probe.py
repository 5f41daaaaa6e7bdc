"""Fits the router separately, in seconds: multinomial logistic regression on features of the frozen encoder.

The router reads only the encoder's pooled feature, the encoder is frozen, and the data give the class; so its training
is a linear probe, without the rest of the network. The features are kept on disk, one small file
a medium, by the bytes of the medium, the processor's settings, the encoder's weights and what the router reads of them.

Letters: N items, W width of the encoder, C classes.

Paper: Peng et al. 2024, Chimera, arXiv:2412.05983, equations 1, 7 and 8; there it is trained with the rest.
Differs: a convex problem is solved to convergence (L-BFGS in float64) instead of for one epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from mcompose.align.data.collator import Collator, media_digest
from mcompose.align.data.samples import Sample
from mcompose.align.features.encoder_identity import encoder_identity, feature_key
from mcompose.align.features.store import FeatureStore
from mcompose.errors import NumericsError, RequestError

__all__ = ["PooledItems", "Probe", "fit_probe", "pooled_items_of"]

_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """Fitted router.

    Args:
        weight: Weight of the router (C, W), float32.
        losses: Loss of each iteration, with the penalty.
        accuracy: Accuracy on the items that it was fitted on.
        items: Number of these items.
    """

    weight: torch.Tensor
    losses: tuple[float, ...]
    accuracy: float
    items: int


@dataclass
class PooledItems:
    """Features and classes of a stage's media of one modality.

    Args:
        features: One row (W,) an item.
        labels: Its class.
    """

    features: list[torch.Tensor] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def fit_probe(
    x_NW: torch.Tensor, labels_N: torch.Tensor, *, classes: int, l2: float, weights: Sequence[float] | None = None
) -> Probe:
    """Fits a bias-free softmax classifier.

    Args:
        x_NW: Features.
        labels_N: Class of each item.
        classes: C; a class may have no item.
        l2: Penalty: half of this times the squared norm of the weights.
        weights: Weights of the classes; default: all alike.

    Returns:
        The minimum of the weighted mean cross-entropy and the penalty; from zero weights on, so without randomness.

    Raises:
        RequestError: There are no items.
        NumericsError: Features are not finite.
    """
    if not len(labels_N):
        raise RequestError(
            "The router cannot be fitted: no item has a label.", hint="Set 'domain' in the datasets of the stage."
        )
    x_NW, labels_N = x_NW.double(), labels_N.long()
    if not torch.isfinite(x_NW).all():
        raise NumericsError("A feature that the router reads is not finite.")
    weights_C = torch.tensor(list(weights or [1.0] * classes), dtype=torch.float64)
    shares_N = weights_C[labels_N] / weights_C[labels_N].sum().clamp(min=1e-12)
    # Scaling the features conditions the problem; the solution is scaled back.
    scale = float(x_NW.square().mean().sqrt().clamp(min=1e-12))
    scaled_NW = x_NW / scale
    weight_CW = torch.zeros(classes, x_NW.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CW], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-13, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    losses: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses_N = F.cross_entropy(scaled_NW @ weight_CW.T, labels_N, reduction="none")
        loss = (losses_N * shares_N).sum() + 0.5 * l2 * (weight_CW / scale).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    fitted_CW = (weight_CW / scale).detach()
    accuracy = float(((x_NW @ fitted_CW.T).argmax(-1) == labels_N).double().mean())
    return Probe(fitted_CW.float(), tuple(losses), accuracy, len(labels_N))


@torch.no_grad()
def pooled_items_of(
    model: Any, collator: Collator, samples: Iterable[Sample], *, store: FeatureStore, batch: int = 8
) -> dict[str, PooledItems]:
    """Features and classes of all media that a router can learn from; only those not on disk are encoded.

    Args:
        model: A composed model with routers, in evaluation mode.
        collator: With the stage's routing.
        samples: Samples of the stage.
        store: Store of cached features.
        batch: Items that are encoded together.

    Returns:
        Modality to its items, in the order of the samples; a medium that occurs twice counts twice.
    """
    assert collator.routing is not None
    found = {modality: PooledItems() for modality in collator.routing.table.classes}
    for modality, made in found.items():
        identity = _identity(model.model, collator, modality)
        made.features, made.labels = [], []
        for items in _batches(_labelled(collator, samples, modality), batch):
            made.features += _features(model.model, collator, modality, [item for item, _ in items], identity, store)
            made.labels += [label for _, label in items]
    return found


def _labelled(collator: Collator, samples: Iterable[Sample], modality: str) -> Iterator[tuple[Any, int]]:
    assert collator.routing is not None
    for sample in samples:
        label = collator.routing.label(sample.domain, modality)
        if label >= 0:
            yield from ((item, label) for item in sample.media().get(modality, []))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting: list[Any] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _features(
    inner: Any, collator: Collator, modality: str, items: list[Any], identity: str, store: FeatureStore
) -> list[torch.Tensor]:
    keys = [feature_key(media_digest(item), identity) for item in items]
    kept = {key: stored["pooled"] for key in dict.fromkeys(keys) if (stored := store.get(key)) is not None}
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in kept}
    if missing:
        for key, row_W in zip(missing, _encoded(inner, collator, modality, list(missing.values())), strict=True):
            kept[key] = row_W.float().cpu()
            store.put(key, {"pooled": kept[key]})
    return [kept[key] for key in keys]


def _encoded(inner: Any, collator: Collator, modality: str, items: list[Any]) -> torch.Tensor:
    """Pooled features (N, W) of some items."""
    from mcompose.modeling import ItemCounts  # noqa: PLC0415 - for checkpoints with routers only

    inputs, tokens = collator.item_inputs(modality, items)
    device = next(inner.get_encoder(modality).parameters()).device
    moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    made = inner.encode_media(inner.media_inputs(moved), items={modality: ItemCounts(tokens, len(items))})
    return made[modality].pooled_IW


def _identity(inner: Any, collator: Collator, modality: str) -> str:
    """Returns what a medium's feature depends on beside its bytes."""
    config, source = inner.config, inner.config.served_by(modality)
    router = {name: config.routers[modality].get(name) for name in ("feature", "tile", "width")}
    weights = (
        (name, tensor)
        for name, tensor in inner.get_encoder(modality).state_dict().items()
        if "projector" not in name and "connector" not in name
    )
    settings = [modality, router, config.sources[source]]
    return encoder_identity(settings, collator.processor.processors.get(source), weights)
