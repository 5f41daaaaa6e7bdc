"""A stage on cached features: frozen encoders see each item once, before training, and are played back in it.

Features lie beside the results of the stages, so that a later stage over the same data and encoders finds them; those
of each precision apart, since automatic casts change what an encoder of the same bytes gives.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mcompose.align import processes
from mcompose.align.data.collator import Collator
from mcompose.align.data.samples import Sample
from mcompose.align.features.cache import CacheReport, FeatureCache
from mcompose.align.features.store import FeatureStore
from mcompose.errors import RequestError
from mcompose.on_disk import COMPOSED_TYPE
from mcompose.recipe import Stage

__all__ = ["FEATURES", "check_cacheable", "play_features"]

FEATURES = "features"
"""Folder of the features, beside those of the stages."""


def check_cacheable(stage: Stage, config: Mapping[str, Any]) -> None:
    """Refuses a stage whose features cannot be kept, before anything is loaded.

    Args:
        stage: The recipe's stage.
        config: Configuration of the checkpoint that the stage starts from.

    Raises:
        RequestError: It is not a composed checkpoint.
    """
    if stage.feature_cache and config.get("model_type") != COMPOSED_TYPE:
        raise RequestError(
            f"'feature_cache' needs a composed checkpoint, and this is a '{config.get('model_type')}'.",
            hint="Leave it out, or compose the source alone first ('output: {format: composed}').",
        )


@contextmanager
def play_features(
    model: torch.nn.Module, collator: Collator, samples: Iterable[Sample], *, folder: Path, precision: str
) -> Iterator[tuple[str, ...]]:
    """Encodes the media of a stage, and plays the features back while it is open. Every process has to open it.

    Args:
        model: Where it is trained, ``requires_grad`` set.
        collator: Collator of the stage; with ``media_keys``.
        samples: All of the stage.
        folder: Folder of the features; may hold others. It may fill half of what is free.
        precision: Precision of the stage.

    Yields:
        Sentences for the user.

    Raises:
        RequestError: A medium cannot be read, or the model has no towers.
        StorageError: The disk refused.
    """
    store = FeatureStore(folder / precision, max_bytes=0)
    store.max_bytes = store.used_bytes + shutil.disk_usage(store.folder).free // 2
    kind = next(model.parameters()).device.type
    with FeatureCache(model, collator, store=store) as cache:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "mixed"):
            report = cache.fill(samples, share=(processes.rank(), processes.world_size()))
        processes.barrier()
        yield _notices(report)


def _notices(report: CacheReport) -> tuple[str, ...]:
    said = [f"Features of {modality} are not cached: {why}." for modality, why in report.uncached.items()]
    if report.refused:
        said.append(f"There was no room for the features of {report.refused} media: they are encoded in every epoch.")
    return tuple(said)
