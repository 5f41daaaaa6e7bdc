"""The sections of a recipe about the network around the language model.

``compose.decouple`` is DAMC's (arXiv:2402.12750), ``experts`` and ``router`` are Chimera's (arXiv:2412.05983; see
``experts.py``), ``vision_mix`` is SPHINX's (arXiv:2311.07575), ``adapters`` is Omni-SMoLA's (arXiv:2312.00968). The
short fine-tunes that they need stand in ``align/stages.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from mcompose.recipe.experts import Expert, ExpertName, Router
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Modality, Reference, Spec, one_of

if TYPE_CHECKING:
    from mcompose.recipe.schema import Recipe

__all__ = [
    "AdapterMix",
    "ComposeSpec",
    "Tiles",
    "VisionMix",
    "check_compose",
]


class Tiles(Spec):
    """How an image is cut into sub-images.

    Attributes:
        count: Most tiles of an image.
        size: Side of a tile in pixels.
        thumbnail: Whether the whole image, made small, is one of them.
    """

    count: Annotated[Count, Field(ge=1)]
    size: Annotated[Count, Field(ge=1)] | None = None
    thumbnail: bool = True


class VisionMix(Spec):
    """Several image encoders whose embeddings are mixed.

    Attributes:
        encoders: Their checkpoints, in order.
        concat: Along the channels or along the sequence.
        tiles: Sub-images; default: the whole image only.
    """

    encoders: tuple[Reference, ...] = ()
    concat: Annotated[Literal["channel", "sequence"], one_of("concatenation", ("channel", "sequence"))] = "channel"
    tiles: Tiles | None = None


class AdapterMix(Spec):
    """A soft mixture of low-rank experts for one group of tokens.

    Attributes:
        modalities: Tokens that it sees; default: all.
        experts: Number of experts.
        rank: Rank of each.
        targets: Names of the layers that it is added to; default: all linear ones.
    """

    modalities: tuple[Modality, ...] | None = None
    experts: Annotated[Count, Field(ge=1)] = 16
    rank: Annotated[Count, Field(ge=1)] = 4
    targets: tuple[str, ...] | None = None


class ComposeSpec(Spec):
    """What the composed network has beside the merged language model.

    Attributes:
        towers: ``separate``: every encoder and projector is copied from one source. ``merge``: those of sources of one
            class are merged like the language model, as SPHINX mixes whole models.
        decouple: ``none``: all tokens use the merged language model. ``donor``: the tokens of a modality use the group
            that its source carries. ``convert``: where a source carries none, its whole language model becomes the
            group (training-free).
        groups: ``keep``: low-rank groups stay low-rank. ``dense``: each becomes tensors of its own.
        experts: Name to expert.
        router: What chooses among the experts; default: a new one for every modality that has experts.
        vision_mix: Mixed image encoders.
        adapters: Name to adapter mixture.
    """

    towers: Annotated[Literal["separate", "merge"], one_of("way with towers", ("separate", "merge"))] = "separate"
    decouple: Annotated[
        Literal["none", "donor", "convert"], one_of("way to decouple", ("none", "donor", "convert"))
    ] = "none"
    groups: Annotated[Literal["keep", "dense"], one_of("form of groups", ("keep", "dense"))] = "keep"
    experts: dict[ExpertName, Expert] = Field(default_factory=dict)
    router: Router | None = None
    vision_mix: VisionMix = Field(default_factory=VisionMix.model_construct)
    adapters: dict[str, AdapterMix] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_domains(self) -> ComposeSpec:
        for name, expert in self.experts.items():
            others = [other for other, one in self.experts.items() if other != name and one.domain == name]
            if others and (expert.domain or name) != name:
                raise FieldError(
                    f"'{{path}}' has the name of the domain of the expert '{others[0]}': data could mean either.",
                    at=("experts", name),
                    hint="Give one of them another name.",
                )
        return self


def check_compose(recipe: Recipe) -> None:
    """Checks what the `compose` section asks for against the rest of the recipe.

    Args:
        recipe: The recipe.

    Raises:
        FieldError: A rule is broken; it says where.
    """
    _check_decouple(recipe)
    _check_experts(recipe)


def _check_decouple(recipe: Recipe) -> None:
    """Decoupled groups belong to the composed format, and to layers that stay where they are."""
    decouple, wanted = recipe.compose.decouple, recipe.output.format
    if decouple == "none":
        return
    if wanted not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {wanted}' has no room for decoupled groups.",
            at=("output", "format"),
            hint=f"Write 'composed', or leave out 'decouple: {decouple}'.",
        )
    if recipe.merge.slices:
        raise FieldError("'{path}' cannot be decoupled.", at=("merge", "slices"), hint="Leave the slices out.")
    if recipe.compose.towers == "merge":
        hint = "Leave 'towers: merge' out; every source keeps its own."
        raise FieldError("'{path}: merge' goes with no decoupled groups.", at=("compose", "towers"), hint=hint)


def _check_experts(recipe: Recipe) -> None:
    """Experts stand in a composed checkpoint, beside the sources' towers and under names of their own."""
    if not recipe.compose.experts:
        return
    for name in recipe.compose.experts:
        if name in recipe.source_names:
            at = ("compose", "experts", name)
            raise FieldError("'{path}' has the name of a source.", at=at, hint="Give the expert another name.")
    if recipe.output.format not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {recipe.output.format}' has no room for experts.",
            at=("output", "format"),
            hint="Write 'composed', or leave out 'compose.experts'.",
        )
