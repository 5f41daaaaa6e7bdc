"""The ``compose`` section of a recipe: the network around the language model.

``decouple`` is from DAMC (arXiv:2402.12750), ``experts`` and ``router`` from Chimera (arXiv:2412.05983; see
``experts.py``), ``vision_mix`` from SPHINX (arXiv:2311.07575; see ``vision_mix.py``), ``adapters`` from Omni-SMoLA
(arXiv:2312.00968; see ``adapters.py``). The short fine-tunes that they need are in ``align/stages.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mcompose.recipe.adapters import AdapterSetName, AdapterSpec, check_adapters
from mcompose.recipe.experts import Expert, ExpertName, Router
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Spec, one_of
from mcompose.recipe.vision_mix import VisionMix, check_vision_mix, read_vision_mix

if TYPE_CHECKING:
    from mcompose.recipe.schema import Recipe

__all__ = [
    "ComposeSpec",
    "check_compose",
]


class ComposeSpec(Spec):
    """What the composed network has besides the merged language model.

    Attributes:
        towers: ``separate``: every encoder and projector is copied from one source. ``merge``: towers of sources of the
            same class are merged like the language model, as SPHINX mixes whole models.
        decouple: ``none``: all tokens use the merged language model. ``donor``: the tokens of a modality use the
            decoupled group of its source. ``convert``: as ``donor``, and where a source has no group, its whole
            language model becomes one (training-free).
        groups: ``keep``: low-rank groups stay low-rank. ``dense``: each group becomes a full copy of its tensors.
        experts: Name to expert.
        router: Router among the experts; default: a new one for every modality that has experts.
        vision_mix: Mixed image encoders; None for none.
        adapters: Name to a soft mixture of low-rank experts.
    """

    towers: Annotated[Literal["separate", "merge"], one_of("way with towers", ("separate", "merge"))] = "separate"
    decouple: Annotated[
        Literal["none", "donor", "convert"], one_of("way to decouple", ("none", "donor", "convert"))
    ] = "none"
    groups: Annotated[Literal["keep", "dense"], one_of("form of groups", ("keep", "dense"))] = "keep"
    experts: dict[ExpertName, Expert] = Field(default_factory=dict)
    router: Router | None = None
    vision_mix: Annotated[VisionMix | None, BeforeValidator(read_vision_mix)] = None
    adapters: dict[AdapterSetName, AdapterSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_domains(self) -> ComposeSpec:
        for name, expert in self.experts.items():
            others = [other for other, spec in self.experts.items() if other != name and spec.domain == name]
            if others and (expert.domain or name) != name:
                raise FieldError(
                    f"'{{path}}' is also the domain of the expert '{others[0]}', so the data are ambiguous.",
                    at=("experts", name),
                    hint="Give one of them another name.",
                )
        return self


def check_compose(recipe: Recipe) -> None:
    """Checks the ``compose`` section against the rest of the recipe.

    Args:
        recipe: The recipe.

    Raises:
        FieldError: A rule is broken; the error names the key.
    """
    _check_decouple(recipe)
    _check_experts(recipe)
    check_vision_mix(recipe)
    check_adapters(recipe)


def _check_decouple(recipe: Recipe) -> None:
    """Checks that decoupled groups go into the composed format, with unmoved layers and separate towers."""
    decouple, output_format = recipe.compose.decouple, recipe.output.format
    if decouple == "none":
        return
    if output_format not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {output_format}' cannot hold decoupled groups.",
            at=("output", "format"),
            hint=f"Write 'composed', or leave out 'decouple: {decouple}'.",
        )
    if recipe.merge.slices:
        message = "'{path}' cannot be combined with decoupled groups."
        raise FieldError(message, at=("merge", "slices"), hint="Leave the slices out.")
    if recipe.compose.towers == "merge":
        hint = "Leave 'towers: merge' out; every source then keeps its own towers."
        message = "'{path}: merge' cannot be combined with decoupled groups."
        raise FieldError(message, at=("compose", "towers"), hint=hint)


def _check_experts(recipe: Recipe) -> None:
    """Checks that experts go into a composed checkpoint and do not share a name with a source."""
    if not recipe.compose.experts:
        return
    for name in recipe.compose.experts:
        if name in recipe.source_names:
            at = ("compose", "experts", name)
            raise FieldError("'{path}' is also the name of a source.", at=at, hint="Give the expert another name.")
    if recipe.output.format not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {recipe.output.format}' cannot hold experts.",
            at=("output", "format"),
            hint="Write 'composed', or leave out 'compose.experts'.",
        )
