"""Measures whether sources share a base language model.

Weights can be averaged because fine-tunes of the same base stay close to it. Matrices of fine-tunes of one base differ
by a few percent; matrices that were trained independently are as far apart as random ones, sqrt(2) of their norm. The
check uses a small, fixed sample of rows from every layer, and compares the settings that change the meaning of weights
(heads, rope, norms). It reads a few megabytes per source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcompose.anatomy import LANGUAGE, Slot
from mcompose.checkpoint import MERGEABLE_DTYPES, TensorEntry, TensorFiles, read_float32
from mcompose.errors import CompositionError
from mcompose.merge.pairing import SourceParts

__all__ = ["LIMIT", "BaseFigures", "check_same_base"]

LIMIT = 0.7
"""Half of sqrt(2). Fine-tunes of one base were measured below 0.3, independently trained models at 1.3 and more."""

MATRICES_PER_LAYER = 3
SPOTS, ROWS_PER_SPOT = 4, 2

SETTINGS = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps",
    "layer_norm_epsilon", "hidden_act", "num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True)
class BaseFigures:
    """Distance of one source's language model from the reference.

    Args:
        source: Name of the source.
        reference: ``base``, or the name of the first source.
        median: Median over the layers of ||W - R|| / ||R||, on the sampled rows.
        largest: Largest distance over the layers.
        layers: One distance for each layer.
    """

    source: str
    reference: str
    median: float
    largest: float
    layers: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures for the ledger, rounded to four digits."""
        return {
            "source": self.source,
            "reference": self.reference,
            "median": round(self.median, 4),
            "largest": round(self.largest, 4),
        }


def check_same_base(
    sources: Sequence[SourceParts], base: SourceParts | None = None, *, allow_different: bool = False
) -> list[BaseFigures]:
    """Compares every source with the base, or with the first source when the recipe does not name a base.

    Args:
        sources: The sources, in the recipe's order.
        base: The base language model.
        allow_different: Whether to measure only (``--allow-different-base``); the shapes must still fit.

    Returns:
        One row for each compared source.

    Raises:
        CompositionError: Shapes or settings differ, or more than half of the layers are further apart than ``LIMIT``.
    """
    reference, *others = sources if base is None else [base, *sources]
    figures: list[BaseFigures] = []
    with TensorFiles() as files:
        for source in others:
            if not allow_different:
                _check_settings(source, reference)
            figures.append(_measure(source, reference, files))
            if not allow_different:
                _check_distance(figures[-1])
    return figures


def _check_distance(measured: BaseFigures) -> None:
    count = sum(distance > LIMIT for distance in measured.layers)
    if count * 2 > len(measured.layers):
        raise CompositionError(
            f"'{measured.source}' and '{measured.reference}' do not share a base language model: their weights differ "
            f"by {measured.median:.2f} of their norm (median over {len(measured.layers)} layers; {count} are over "
            f"{LIMIT}; fine-tunes of one base stay far below, unrelated models are near 1.41).",
            hint="Use sources of the same base, or '--allow-different-base' to merge them anyway.",
        )


def _check_settings(source: SourceParts, reference: SourceParts) -> None:
    ours, theirs = _settings(source.anatomy.text_config), _settings(reference.anatomy.text_config)
    for key, value in ours.items():
        if key in theirs and theirs[key] != value:
            raise CompositionError(
                f"'{source.name}' and '{reference.name}' do not share a base language model: {key} is {value} in one "
                f"and {theirs[key]} in the other.",
                hint="Use sources of the same base, or '--allow-different-base' to merge them anyway.",
            )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a config states; settings left to the class's defaults are not compared."""
    stated = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    return stated | _rope_settings(config)


def _rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns theta, type and factor of the rotary positions, in either spelling; empty when not stated."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    rope: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    theta = config.get("rope_theta") or rope.get("rope_theta")
    if not rope and theta is None:
        return {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    settings: dict[str, Any] = {"rope_type": "default" if kind == "mrope" else kind}
    numbers = {"rope_theta": theta, "rope factor": rope.get("factor")}
    return settings | {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}


def _measure(source: SourceParts, reference: SourceParts, files: TensorFiles) -> BaseFigures:
    ours, theirs = source.anatomy.by_name(LANGUAGE), reference.anatomy.by_name(LANGUAGE)
    by_layer: dict[int, list[str]] = {}
    for name, slot in theirs.items():
        if slot.layer is not None and name in ours and _is_matrix(reference.entry(slot.key)):
            by_layer.setdefault(slot.layer, []).append(name)
    distances = [
        _layer_distance(
            [(_entry(source, ours[name]), _entry(reference, theirs[name])) for name in _spread(names)], source, files
        )
        for _, names in sorted(by_layer.items())
    ]
    if not distances:
        raise CompositionError(
            f"'{source.name}' and '{reference.name}' do not have a layer in common.",
            hint="Use language models of the same architecture.",
        )
    ordered = sorted(distances)
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return BaseFigures(source.name, reference.name, median, ordered[-1], tuple(distances))


def _entry(parts: SourceParts, slot: Slot) -> TensorEntry:
    return parts.entry(slot.key)


def _is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and min(entry.shape) > 1 and entry.dtype in MERGEABLE_DTYPES


def _spread(names: Sequence[str]) -> list[str]:
    """Returns the first, middle and last of a layer's matrices, by name."""
    ordered = sorted(names)
    count = min(MATRICES_PER_LAYER, len(ordered))
    return [ordered[i * (len(ordered) - 1) // max(count - 1, 1)] for i in range(count)]


def _layer_distance(pairs: Sequence[tuple[TensorEntry, TensorEntry]], source: SourceParts, files: TensorFiles) -> float:
    difference = length = 0.0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise CompositionError(
                f"'{ours.key}' is {list(ours.shape)} in '{source.name}', but {list(theirs.shape)} in the other model.",
                hint="Use language models of the same architecture and size.",
            )
        if ours.dtype not in MERGEABLE_DTYPES:
            continue
        for start in _row_starts(ours.shape[0]):
            span = (start, min(start + ROWS_PER_SPOT, ours.shape[0]))
            a, b = (read_float32(entry, span, files=files).astype(np.float64) for entry in (ours, theirs))
            difference += float(np.square(a - b).sum())
            length += float(np.square(b).sum())
    if length == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(np.sqrt(difference / length))


def _row_starts(rows: int) -> list[int]:
    """Returns a few evenly spread row indices, the same in every run."""
    return sorted({(2 * spot + 1) * rows // (2 * SPOTS) for spot in range(SPOTS)})
