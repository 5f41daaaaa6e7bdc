"""What the composition report compares: every variant as a recipe, and what may be searched in it.

Everything here was set before any of it was measured. A searched variant gets one coefficient a source, from 0 to 1,
where its method takes weights, and its method's ``lambda``, from 0.1 to 2, where it has one; all get as many trials.
NaiveMC's weights add up to one by its definition, so its searched form is task arithmetic: the same merge where the
weights are 1/M each, and free of the sum, like DAMC's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcompose.lab import LabFamily
from mcompose.pipeline.lab.relative import local_reference
from mcompose.pipeline.search.request import SpaceRequest
from mcompose.whole_files import write_text

__all__ = ["BASE", "SMOL_GROWN", "SMOL_VARIANTS", "VARIANTS", "Variant", "searched_form", "write_recipe"]

BASE = "base"
_LAMBDA = ("lambda:0.1:2.0",)


@dataclass(frozen=True)
class Variant:
    """One way to compose.

    Args:
        name: In tables.
        method: Merge method.
        parameters: That differ from its defaults.
        weight: Of every source; None for the method's own.
        decouple: ``none``, ``donor`` (from the decoupled donors) or ``convert``.
        lambdas: Whether a search varies the method's ``lambda``.
        weighted: Whether a search varies one coefficient a source.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float | None = None
    decouple: str = "none"
    lambdas: bool = False
    weighted: bool = True

    def space(self) -> SpaceRequest:
        """What a search varies."""
        low, high = (0.0, 1.0) if self.weighted else (None, None)
        return SpaceRequest(weights=self.weighted, low=low, high=high, parameters=_LAMBDA if self.lambdas else ())


VARIANTS: tuple[Variant, ...] = (
    Variant(BASE, "task_arithmetic", weight=0.0),
    Variant("naivemc", "naivemc"),
    Variant("damc", "damc", decouple="donor"),
    Variant("damc-convert", "damc", decouple="convert"),
    Variant("ties", "ties", {"density": 0.5}, lambdas=True),
    Variant("tsv", "tsv", lambdas=True, weighted=False),
    Variant("iso-c", "iso-c", lambdas=True, weighted=False),
    Variant("optmerge", "optmerge", {"against": "source"}, lambdas=True, weighted=False),
    Variant("wudi", "wudi", lambdas=True, weighted=False),
)
"""``base`` is the unchanged language model with the donors' towers; it has nothing to search."""

SMOL_VARIANTS: tuple[Variant, ...] = tuple(one for one in VARIANTS if one.name != "wudi")
"""All but the one whose merge of a model of this size takes a quarter of an hour."""
SMOL_GROWN: tuple[Variant, ...] = tuple(one for one in VARIANTS if one.name in {"naivemc", "damc", "damc-convert"})
"""What is composed of two donors, too, where merges are large: the claim and what it is compared with."""


def searched_form(variant: Variant, *, sources: int) -> Variant | None:
    """What a search starts from.

    Args:
        variant: As it is without a search.
        sources: How many.

    Returns:
        The variant whose coefficients are searched; None where there are none.
    """
    if variant.name == BASE:
        return None
    if variant.method == "naivemc":
        return Variant(variant.name, "task_arithmetic", weight=1.0 / sources)
    return variant


def write_recipe(
    family: LabFamily, variant: Variant, path: Path, *, donors: Mapping[str, Path], names: Sequence[str] = ()
) -> Path:
    """Writes a variant's recipe.

    Args:
        family: The family.
        variant: The variant.
        path: Where to; the output lies beside it, under the recipe's name.
        donors: Modality -> checkpoint: the shared donors, or the decoupled ones.
        names: Which donors; all by default.

    Returns:
        ``path``.
    """
    chosen = list(names or donors)
    merge: dict[str, Any] = {"method": variant.method, "dtype": "float32", "seed": 0}
    if variant.parameters:
        merge["parameters"] = dict(variant.parameters)
    if variant.weight is not None:
        merge["weights"] = dict.fromkeys(chosen, variant.weight)
    recipe: dict[str, Any] = {
        "schema": 1,
        "name": f"{family.name}-{path.stem}",
        "base": local_reference(family.base, path),
        "sources": [{"name": m, "model": local_reference(donors[m], path), "modalities": [m]} for m in chosen],
        "merge": merge,
    }
    if variant.decouple != "none":
        recipe["compose"] = {"decouple": variant.decouple}
    recipe["output"] = {"dir": path.stem}
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path
