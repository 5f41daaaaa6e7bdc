"""Builds the segment of one tensor from a recipe's settings: method, weights and parameters.

Everything that a method needs is checked here, from headers only: a missing base, too few sources or an unknown
parameter is reported before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import EMBEDDING, HEAD, Slot
from mcompose.checkpoint import MERGEABLE_DTYPES
from mcompose.dtypes import FLOAT_CODES
from mcompose.errors import CompositionError, RecipeError, nearest_name
from mcompose.merge.catalogue import find_method
from mcompose.merge.job import Contribution, Segment
from mcompose.methods import Method, TensorTask, arguments_for
from mcompose.recipe import settings_for

if TYPE_CHECKING:
    from mcompose.recipe import MergeSpec, Setting

__all__ = ["bound_segment", "output_dtype"]

SUMS_OF_CHANGES = ("damc",)
"""Methods that add changes to a base, and that return a single source unchanged when its coefficient is one."""


def output_dtype(requested: str | None, dtype: str) -> str:
    """Returns the dtype of an output tensor.

    Args:
        requested: ``merge.dtype`` of the recipe.
        dtype: safetensors dtype of the first contribution.

    Returns:
        The requested dtype for mergeable tensors; the dtype of the contribution for all others.

    Raises:
        RecipeError: Weights cannot be written in the requested dtype.
    """
    if requested is None or dtype not in MERGEABLE_DTYPES:
        return dtype
    try:
        return FLOAT_CODES[requested]
    except KeyError:
        raise RecipeError(
            f"merge.dtype '{requested}' is not a dtype for weights.", hint=nearest_name(requested, FLOAT_CODES)
        ) from None


def bound_segment(
    merge: MergeSpec,
    slot: Slot,
    *,
    inputs: Sequence[Contribution],
    base: Contribution | None,
    rows: int,
    num_layers: int,
) -> Segment:
    """Returns the segment of the first ``rows`` rows of one tensor, with all settings that the engine needs.

    Args:
        merge: The recipe's merge section.
        slot: Shared name, part and layer of the tensor.
        inputs: One contribution for each source.
        base: Tensor of the base language model; None when the recipe does not name a base that has it.
        rows: Number of rows to merge.
        num_layers: Number of decoder layers of the output, for gradients over layers.

    Raises:
        CompositionError: The tensors cannot be merged: integers, fp8 numbers, or a base of another shape.
        RequestError: The method lacks its base, its parameters or sources.
    """
    name = slot.name
    if not _are_mergeable(name, inputs):
        return Segment(0, rows, "copied", tuple(inputs))
    setting = settings_for(
        merge,
        sources=[c.source for c in inputs],
        part=slot.part,
        layer=slot.layer,
        num_layers=num_layers,
        name=name,
    )
    method = find_method(setting.method)
    is_overridden = setting.method != merge.method  # then the merge's weights are for the other tensors
    if setting.weights is not None and not method.weighted and not is_overridden:
        raise RecipeError(f"'{method.name}' does not take weights.", hint="Remove 'merge.weights' from the recipe.")
    weights = setting.weights or (1.0 / len(inputs),) * len(inputs)
    if len(inputs) == 1 and _keeps_one(method, setting):
        return _single(inputs[0], rows, dtype=output_dtype(merge.dtype, inputs[0].entry.dtype))
    sources = tuple(c.source for c in inputs)
    arguments_for(method, TensorTask(name, (), sources, weights, setting.parameters))  # refuses what does not fit
    return Segment(
        0,
        rows,
        "merged",
        tuple(inputs),
        base=_checked_base(method, slot, inputs=inputs, base=base),
        method=method.name,
        weights=weights if method.weighted else (),
        parameters=_with_defaults(method, setting.parameters),
        seed=merge.seed if method.random else 0,
    )


def _with_defaults(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters with defaults, so that plan, ledger and fingerprint are complete."""
    return {p.name: given.get(p.name, p.default) for p in method.parameters}


def _are_mergeable(name: str, inputs: Sequence[Contribution]) -> bool:
    """Returns True when all inputs can be merged, False when all must have the same bits."""
    odd = [c for c in inputs if c.entry.dtype not in MERGEABLE_DTYPES]
    if odd and len({c.entry.dtype for c in inputs}) > 1:
        plain = next(c for c in inputs if c.entry.dtype != odd[0].entry.dtype)
        raise CompositionError(
            f"'{name}' is {odd[0].entry.dtype} in '{odd[0].source}' and {plain.entry.dtype} in '{plain.source}'.",
            hint="Use a checkpoint in bfloat16; quantised and integer tensors cannot be merged.",
        )
    if odd and any(c.low_rank is not None for c in inputs):
        raise CompositionError(
            f"'{name}' of '{odd[0].source}' is {odd[0].entry.dtype}; an adapter cannot be folded into it.",
            hint="Use a checkpoint in bfloat16.",
        )
    return not odd


def _keeps_one(method: Method, setting: Setting) -> bool:
    """Returns whether merging a single source with this method copies it."""
    if method.name in SUMS_OF_CHANGES:
        return setting.weights in (None, (1.0,))
    plain = not setting.parameters and (setting.weights is None or setting.weights == (1.0,))
    return plain and method.space == "weights" and method.min_sources == 1 and method.base != "required"


def _single(contribution: Contribution, rows: int, *, dtype: str) -> Segment:
    if contribution.low_rank is not None:
        return Segment(0, rows, "folded", (contribution,))
    return Segment(0, rows, "copied" if contribution.entry.dtype == dtype else "cast", (contribution,))


def _checked_base(
    method: Method, slot: Slot, *, inputs: Sequence[Contribution], base: Contribution | None
) -> Contribution | None:
    if method.base == "unused":
        return None
    if base is None:
        if method.base == "optional":
            return None
        raise RecipeError(
            f"'{method.name}' merges changes from a base, but the base of '{slot.name}' is missing.",
            hint="Add 'base' to the recipe: the language model that all sources started from.",
        )
    first = inputs[0]
    skip = 1 if slot.part in (EMBEDDING, HEAD) else 0
    if base.entry.shape[skip:] != first.entry.shape[skip:]:
        raise CompositionError(
            f"'{slot.name}' is {list(first.entry.shape)} in '{first.source}' and {list(base.entry.shape)} in the base.",
            hint="Set the recipe's 'base' to the language model that the sources started from.",
        )
    return base
