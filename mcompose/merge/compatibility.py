"""Whether sources share one base language model, by measurement and not by name.

Weights can be averaged because fine-tunes of one base stay close to it. Two matrices of one base differ by a few per
cent; two that were trained apart are as far from each other as independent random ones, sqrt(2) of their own length.
So a small, fixed sample of rows from every layer decides, together with the settings that change what equal weights
mean (heads, rope, norms). A few megabytes are read per source.
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
"""Half of sqrt(2). Full fine-tunes of one base were seen below 0.3, models trained apart at 1.3 and more."""

MATRICES_PER_LAYER = 3
SPOTS, ROWS_PER_SPOT = 4, 2

SETTINGS = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps",
    "layer_norm_epsilon", "hidden_act", "num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True)
class BaseFigures:
    """How far one source's language model is from the reference.

    Args:
        source: Name of the source.
        reference: ``base``, or the name of the first source.
        median: Median over the layers of ||W - R|| / ||R||, on the sampled rows.
        largest: Largest over the layers.
        layers: One distance a layer.
    """

    source: str
    reference: str
    median: float
    largest: float
    layers: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures for the ledger, four digits each."""
        return {
            "source": self.source,
            "reference": self.reference,
            "median": round(self.median, 4),
            "largest": round(self.largest, 4),
        }


def check_same_base(
    sources: Sequence[SourceParts], base: SourceParts | None = None, *, allow_different: bool = False
) -> list[BaseFigures]:
    """Compares every source with the base, or with the first source where the recipe names no base.

    Args:
        sources: The sources, in the recipe's order.
        base: The base language model.
        allow_different: True to measure only (``--allow-different-base``); shapes must fit all the same.

    Returns:
        One row per compared source.

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
    far = sum(distance > LIMIT for distance in measured.layers)
    if far * 2 > len(measured.layers):
        raise CompositionError(
            f"'{measured.source}' and '{measured.reference}' do not share a base language model: their weights differ "
            f"by {measured.median:.2f} of their length (median over {len(measured.layers)} layers; {far} are over "
            f"{LIMIT}; fine-tunes of one base stay far below, unrelated models are near 1.41).",
            hint="Use sources of one base, or '--allow-different-base' to merge them all the same.",
        )


def _check_settings(source: SourceParts, reference: SourceParts) -> None:
    ours, theirs = _settings(source.anatomy.text_config), _settings(reference.anatomy.text_config)
    for key, value in ours.items():
        if key in theirs and theirs[key] != value:
            raise CompositionError(
                f"'{source.name}' and '{reference.name}' do not share a base language model: {key} is {value} in one "
                f"and {theirs[key]} in the other.",
                hint="Use sources of one base, or '--allow-different-base' to merge them all the same.",
            )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a config states; what it leaves to its class's default is not compared."""
    found = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    return found | _rope_settings(config)


def _rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and stretching of the rotary positions, in the old spelling or the new; empty where nothing is stated."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    rope: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    theta = config.get("rope_theta") or rope.get("rope_theta")
    if not rope and theta is None:
        return {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    found: dict[str, Any] = {"rope_type": "default" if kind == "mrope" else kind}
    numbers = {"rope_theta": theta, "rope factor": rope.get("factor")}
    return found | {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}


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
            f"'{source.name}' and '{reference.name}' have no layer in common.",
            hint="Only language models of one architecture can be merged.",
        )
    ordered = sorted(distances)
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return BaseFigures(source.name, reference.name, median, ordered[-1], tuple(distances))


def _entry(parts: SourceParts, slot: Slot) -> TensorEntry:
    return parts.entry(slot.key)


def _is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and min(entry.shape) > 1 and entry.dtype in MERGEABLE_DTYPES


def _spread(names: Sequence[str]) -> list[str]:
    """First, middle and last of a layer's matrices, by name."""
    ordered = sorted(names)
    count = min(MATRICES_PER_LAYER, len(ordered))
    return [ordered[i * (len(ordered) - 1) // max(count - 1, 1)] for i in range(count)]


def _layer_distance(pairs: Sequence[tuple[TensorEntry, TensorEntry]], source: SourceParts, files: TensorFiles) -> float:
    difference = length = 0.0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise CompositionError(
                f"'{ours.key}' of '{source.name}' is {list(ours.shape)}, and {list(theirs.shape)} in the other model.",
                hint="Only language models of one architecture and size can be merged.",
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
    """A few places along the rows, the same in every run."""
    return sorted({(2 * spot + 1) * rows // (2 * SPOTS) for spot in range(SPOTS)})
