"""Output layers that come from ranges of the sources' layers, as in mergekit's ``slices``."""

from __future__ import annotations

from dataclasses import dataclass

from mcompose.errors import RecipeError
from mcompose.recipe.schema import MergeSpec, Slice

__all__ = ["SlicePlace", "count_layers", "drop_whole_slice", "find_slice"]


@dataclass(frozen=True)
class SlicePlace:
    """Position of an output tensor in the slices.

    Args:
        piece: The slice.
        index: Index of the slice in the recipe, from 0.
        offset: Layer within the slice, from 0; None outside the layers.
        layers: Source (also ``base``, when the slice names it) to the layer to read; None outside the layers.
    """

    piece: Slice
    index: int
    offset: int | None
    layers: dict[str, int] | None


def count_layers(merge: MergeSpec) -> int:
    """Returns the number of output layers; 0 when the recipe does not have slices."""
    return sum(piece.num_layers for piece in merge.slices or ())


def find_slice(merge: MergeSpec, *, part: str, layer: int | None) -> SlicePlace | None:
    """Finds the slice that an output tensor belongs to.

    Args:
        merge: The merge section of the recipe.
        part: Part of the tensor; as in mergekit, embeddings belong to the first slice, and tensors after the layers to
            the last.
        layer: Output layer; None outside the layers.

    Returns:
        The position; None when the recipe does not have slices.

    Raises:
        RecipeError: The slices have fewer layers.
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
    raise RecipeError(f"'merge.slices' have {start} layers, so layer {layer} does not exist.")


def drop_whole_slice(merge: MergeSpec, *, num_layers: int) -> MergeSpec:
    """Turns a single slice over all layers of every source into an ordinary merge.

    Args:
        merge: The merge section of the recipe.
        num_layers: Number of layers of every source.

    Returns:
        The merge without slices, or unchanged when the slices rearrange layers.
    """
    if merge.slices is None or len(merge.slices) != 1:
        return merge
    only = merge.slices[0]
    if any(entry.layer_range != (0, num_layers) for entry in only.sources):
        return merge
    weights = merge.weights if only.weights is None else only.weights
    parameters = {**merge.parameters, **only.parameters}
    return merge.model_copy(update={"slices": None, "weights": weights, "parameters": parameters})
