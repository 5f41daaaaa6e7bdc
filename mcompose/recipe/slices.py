"""Output layers that are taken from ranges of the sources' layers, as mergekit's ``slices`` say."""

from __future__ import annotations

from dataclasses import dataclass

from mcompose.errors import RecipeError
from mcompose.recipe.schema import MergeSpec, Slice

__all__ = ["SlicePlace", "count_layers", "drop_whole_slice", "find_slice"]


@dataclass(frozen=True)
class SlicePlace:
    """Where an output tensor stands in the slices.

    Args:
        piece: The slice.
        index: Its number.
        offset: Layer within the slice; None outside the layers.
        layers: Source (``base`` too, when the slice names it) to the layer to read; None outside the layers.
    """

    piece: Slice
    index: int
    offset: int | None
    layers: dict[str, int] | None


def count_layers(merge: MergeSpec) -> int:
    """Layers of the output; 0 when the recipe has no slices."""
    return sum(piece.num_layers for piece in merge.slices or ())


def find_slice(merge: MergeSpec, *, part: str, layer: int | None) -> SlicePlace | None:
    """The slice that an output tensor is made by.

    Args:
        merge: The merge.
        part: The tensor's part; as in mergekit, embeddings follow the first slice, everything after the layers the
            last.
        layer: Output layer; None outside the layers.

    Returns:
        The place; None when the recipe has no slices.

    Raises:
        RecipeError: The slices make no such layer.
    """
    if not merge.slices:
        return None
    if layer is None or part in {"encoder", "projector"}:
        index = 0 if part == "embedding" else len(merge.slices) - 1
        return SlicePlace(merge.slices[index], index, None, None)
    start = 0
    for index, piece in enumerate(merge.slices):
        if layer < start + piece.num_layers:
            offset = layer - start
            layers = {entry.source: entry.layer_range[0] + offset for entry in piece.sources}
            return SlicePlace(piece, index, offset, layers)
        start += piece.num_layers
    raise RecipeError(f"'merge.slices' make {start} layers; there is no layer {layer}.")


def drop_whole_slice(merge: MergeSpec, *, num_layers: int) -> MergeSpec:
    """Turns one slice over all layers of every source into an ordinary merge, which is what it is.

    Args:
        merge: The merge.
        num_layers: Layers of every source.

    Returns:
        The merge without slices, or as it was when it really rearranges layers.
    """
    if merge.slices is None or len(merge.slices) != 1:
        return merge
    only = merge.slices[0]
    if any(entry.layer_range != (0, num_layers) for entry in only.sources):
        return merge
    weights = merge.weights if only.weights is None else only.weights
    parameters = {**merge.parameters, **only.parameters}
    return merge.model_copy(update={"slices": None, "weights": weights, "parameters": parameters})
