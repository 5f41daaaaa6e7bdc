"""The recipe, schema 1: what to make, as frozen values.

::

    Recipe
    ├── base, sources           the checkpoints; the order of the sources matters
    ├── merge                   method, weights and parameters of the shared language model
    │   ├── overrides           other settings for some tensors; applied in order, the later wins
    │   └── slices              output layers taken from ranges of the sources' layers (from mergekit files)
    ├── compose                 see ``compose.py``, and ``experts.py`` for domain experts
    ├── align                   see ``align/stages.py``
    └── output                  folder, format, shard size
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mcompose.recipe.align.stages import AlignSpec
from mcompose.recipe.compose import ComposeSpec
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import (
    Bytes,
    Count,
    Dtype,
    Modality,
    ParameterValue,
    Part,
    Reference,
    SourceName,
    Spec,
    Title,
    WeightValue,
    one_of,
)
from mcompose.recipe.rules import check_rules
from mcompose.refs import ModelRef

__all__ = [
    "FORMATS",
    "Match",
    "MergeSpec",
    "OutputSpec",
    "Override",
    "Recipe",
    "Resolved",
    "Slice",
    "SliceSource",
    "Source",
]

FORMATS = ("auto", "native", "composed", "text")
GIGABYTE = 1000**3


class Source(Spec):
    """One checkpoint that is merged.

    Attributes:
        name: Name of the source in the recipe and in the output's keys.
        model: Reference of the checkpoint.
        modalities: Modalities that it contributes besides its language model; None for all that it has.
        adapter: Reference of a PEFT adapter, which is folded into the weights.
    """

    name: SourceName
    model: Reference
    modalities: tuple[Modality, ...] | None = None
    adapter: Reference | None = None


class Match(Spec):
    """Which tensors an override applies to; all conditions that are set must hold.

    Attributes:
        part: ``language``, ``embedding``, ``head``, ``encoder`` or ``projector``.
        layers: First and last layer, both included.
        key: Glob over the tensor's name (``*.self_attn.*``); ``*`` also spans dots.
    """

    part: Part | None = None
    layers: tuple[Count, Count] | None = None
    key: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Match:
        if self.part is None and self.layers is None and self.key is None:
            raise FieldError("'{path}' does not have a condition.", hint="Give 'part', 'layers' or 'key'.")
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            hint = "Layers count from 0, and both ends are included."
            raise FieldError("'{path}' must be [first, last].", at=("layers",), hint=hint)
        return self


class Override(Spec):
    """Other settings for some tensors.

    Attributes:
        match: Condition on the tensors.
        weights: Source to weight; replaces earlier weights. Gradients run over the matched layers.
        parameters: Parameters that replace earlier ones of the same name; the others stay.
        method: Name of another method. It starts from its own defaults: earlier parameters are dropped, weights stay.
    """

    match: Match
    weights: dict[str, WeightValue] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    method: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Override:
        if self.weights is None and not self.parameters and self.method is None:
            raise FieldError("'{path}' changes nothing.", hint="Give 'weights', 'parameters' or 'method'.")
        return self


class SliceSource(Spec):
    """Some layers of one source.

    Attributes:
        source: Name of the source, or ``base``.
        layer_range: First layer, and the layer after the last, as in mergekit.
    """

    source: str
    layer_range: tuple[Count, Count]

    @model_validator(mode="after")
    def _check(self) -> SliceSource:
        if not 0 <= self.layer_range[0] <= self.layer_range[1]:
            hint = "The end is not included; a range of no layers gives only what lies before or after the layers."
            raise FieldError("'{path}' must be [first, end].", at=("layer_range",), hint=hint)
        return self

    @property
    def num_layers(self) -> int:
        """Number of layers in the range."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(Spec):
    """Consecutive output layers, and the layers that they are merged from.

    Attributes:
        sources: One range of layers for each source, all of the same length; ``base`` may be among them.
        weights: Weights that replace the merge's for this slice: one for each of its sources except the base.
        parameters: Parameters that replace the merge's of the same name for this slice.
    """

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    weights: dict[str, WeightValue] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Number of output layers of the slice."""
        return self.sources[0].num_layers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slice's sources, without the base."""
        return tuple(entry.source for entry in self.sources if entry.source != "base")


class MergeSpec(Spec):
    """How the shared language model is merged.

    Attributes:
        method: Name of a merge method; ``mergekit:<name>`` for mergekit's own implementation.
        weights: Source to weight, which may be a gradient over the layers; None for 1/M each (M sources).
        parameters: Parameters of the method: one value, or a value for each source; each may be a gradient.
        overrides: Other settings for some tensors, applied in order.
        dtype: Dtype of the output; None keeps the sources'. The computation is float32 in every case.
        seed: Seed of methods that draw random numbers.
        slices: Output layers as ranges of the sources' layers; None merges layer by layer.
        tokenizer: Whose tokenizer the output gets: ``base`` or a source's name; ``union`` where all are equal; None
            lets mcompose choose.
    """

    method: Annotated[str, Field(min_length=1)]
    weights: dict[str, WeightValue] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    dtype: Dtype | None = None
    seed: Annotated[Count, Field(ge=0, lt=2**64)] = 0
    slices: Annotated[tuple[Slice, ...], Field(min_length=1)] | None = None
    tokenizer: str | None = None


class OutputSpec(Spec):
    """Where and how the result is written.

    Attributes:
        dir: Folder of the result; None when the command line must name one.
        format: ``auto``, ``native``, ``composed`` or ``text``.
        max_shard_size: Largest size of one weight file, in bytes.
    """

    dir: Annotated[str, Field(min_length=1)] | None = None
    format: Annotated[Literal["auto", "native", "composed", "text"], one_of("format", FORMATS)] = "auto"
    max_shard_size: Bytes = 5 * GIGABYTE


class Resolved(Spec):
    """Section that a resolved recipe has in addition to the authored one.

    Attributes:
        digests: Source (``base`` for the base) to file to ``sha256:...``.
    """

    digests: dict[str, dict[str, str]] = Field(default_factory=dict)


def _schema_version(raw: object) -> object:
    if raw != 1 or isinstance(raw, bool):
        raise FieldError(f"'{{path}}' cannot be {raw}; this version reads schema 1.", hint="Write 'schema: 1'.")
    return raw


class Recipe(Spec):
    """A recipe: which checkpoints are merged and composed, and how.

    Attributes:
        schema_: Version of the schema; the key is ``schema``.
        name: Name of the result.
        base: Reference of the language model that all sources started from.
        sources: Checkpoints that are merged; their order matters.
        merge: How the shared language model is merged.
        compose: What the composed network has besides the language model.
        align: Short fine-tunes after the composition.
        output: Where and how the result is written.
        resolved: Digests of the sources; only in a resolved recipe.
    """

    schema_: Annotated[Literal[1], BeforeValidator(_schema_version)] = Field(alias="schema")
    name: Title
    base: Reference | None = None
    sources: tuple[Source, ...]
    merge: MergeSpec
    compose: ComposeSpec = Field(default_factory=ComposeSpec.model_construct)
    align: AlignSpec | None = None
    output: OutputSpec = Field(default_factory=OutputSpec.model_construct)
    resolved: Resolved | None = None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        check_rules(self)
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        return tuple(source.name for source in self.sources)

    def reference(self, name: str) -> ModelRef | None:
        """Returns the reference of a source, or of the base for ``base``; None when it does not exist."""
        if name == "base":
            return self.base
        return next((source.model for source in self.sources if source.name == name), None)
