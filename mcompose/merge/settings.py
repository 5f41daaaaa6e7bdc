"""From a recipe's settings to one segment: which method, which weights, which parameters for one tensor.

Everything that a method needs is bound and checked here, while only headers are open: a missing base, too few sources
or an unknown parameter is told before anything is read.
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
"""Methods that count from a base, and whose only source at coefficient one is that source, to the bit."""


def output_dtype(requested: str | None, dtype: str) -> str:
    """The dtype of an output tensor.

    Args:
        requested: ``merge.dtype`` of the recipe.
        dtype: safetensors dtype of the first contribution.

    Returns:
        The requested one for floating dtypes that arithmetic is done on; all others stay as they are.

    Raises:
        RecipeError: The requested dtype is none that weights can be written in.
    """
    if requested is None or dtype not in MERGEABLE_DTYPES:
        return dtype
    try:
        return FLOAT_CODES[requested]
    except KeyError:
        raise RecipeError(
            f"merge.dtype '{requested}' is not a dtype of weights.", hint=nearest_name(requested, FLOAT_CODES)
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
    """The first ``rows`` rows of one tensor, with everything that the engine must know about them.

    Args:
        merge: The recipe's merge section.
        slot: The tensor's shared name, part and layer.
        inputs: One contribution a source.
        base: The base language model's tensor, where the recipe names a base that holds it.
        rows: Rows to merge.
        num_layers: Decoder layers of the output, for gradients over layers.

    Raises:
        CompositionError: The tensors cannot be merged: integers or fp8 numbers, or a base of another shape.
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
    overridden = setting.method != merge.method  # then the merge's weights are for the other tensors
    if setting.weights is not None and not method.weighted and not overridden:
        raise RecipeError(f"'{method.name}' takes no weights.", hint="Take 'merge.weights' out of the recipe.")
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
    """The parameters in full, so that plan, ledger and fingerprint say what was done."""
    return {p.name: given.get(p.name, p.default) for p in method.parameters}


def _are_mergeable(name: str, inputs: Sequence[Contribution]) -> bool:
    """True when arithmetic is done on all; False when all must hold the same bits."""
    odd = [c for c in inputs if c.entry.dtype not in MERGEABLE_DTYPES]
    if odd and len({c.entry.dtype for c in inputs}) > 1:
        plain = next(c for c in inputs if c.entry.dtype != odd[0].entry.dtype)
        raise CompositionError(
            f"'{name}' is {odd[0].entry.dtype} in '{odd[0].source}' and {plain.entry.dtype} in '{plain.source}'.",
            hint="Quantised and integer tensors cannot be merged; use a checkpoint in bfloat16.",
        )
    if odd and any(c.low_rank is not None for c in inputs):
        raise CompositionError(
            f"'{name}' of '{odd[0].source}' is {odd[0].entry.dtype}, and its adapter cannot be folded into it.",
            hint="Use a checkpoint in bfloat16.",
        )
    return not odd


def _keeps_one(method: Method, setting: Setting) -> bool:
    """True when merging a single source by this method is copying it."""
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
            f"'{method.name}' merges what sources changed, and '{slot.name}' has no base to change from.",
            hint="Give the recipe's 'base': the language model that all sources started from.",
        )
    first = inputs[0]
    skip = 1 if slot.part in (EMBEDDING, HEAD) else 0
    if base.entry.shape[skip:] != first.entry.shape[skip:]:
        raise CompositionError(
            f"'{slot.name}' is {list(first.entry.shape)} in '{first.source}' and {list(base.entry.shape)} in the base.",
            hint="The recipe's 'base' must be the language model that the sources started from.",
        )
    return base
