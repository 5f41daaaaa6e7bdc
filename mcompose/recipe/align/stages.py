"""The ``align`` section of a recipe: the short fine-tunes that follow a composition.

A stage says what is trained (parts by role, LoRA on parts, or a donor's strategy), on which data, and how. Nothing in
it depends on the machine: ``batch_size`` is the number of samples of one optimizer step over all processes, and
``accumulation`` the number of pieces that a step is cut into, so the same recipe makes the same steps on one device
and on eight.

Parts are named by role, ``projectors`` or ``projector:<source>``; ``align/parts.py`` finds them in a
checkpoint. Strategies are those of Chen et al. 2024, arXiv:2402.12750 (``shared``, ``modality``, ``modality+text``,
``projector``): short names for what a donor trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from mcompose.errors import nearest_name
from mcompose.part_names import (
    ADAPTER,
    EMBEDDING,
    ENCODER,
    EXPERT,
    GROUP,
    HEAD,
    LANGUAGE,
    MASK,
    PROJECTOR,
    ROUTER,
    SEPARATORS,
)
from mcompose.recipe.align.datasets import DatasetSpec, Temperature
from mcompose.recipe.align.experts import Masking, RouterTraining, Tiling
from mcompose.recipe.align.preference import Preference, check_preference
from mcompose.recipe.align.presets import fill_in
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Modality, Number, Spec, one_of

__all__ = [
    "PRECISIONS",
    "ROLES",
    "STRATEGIES",
    "AlignSpec",
    "GroupsSpec",
    "LoraSpec",
    "PartName",
    "Stage",
    "part_role",
]

ROLES = (
    *(PROJECTOR, ENCODER, LANGUAGE, EMBEDDING, HEAD, "llm", GROUP, "all", "key"),
    *(ROUTER, EXPERT, SEPARATORS, MASK, ADAPTER),
)
"""What a part's name may begin with; ``key:<glob>`` takes tensors by name, ``llm`` is language, embedding and head.

The second row belongs to domain experts: ``router``, ``expert:<name>`` (its encoder), ``separators`` (the two vectors
around an expert's tokens), ``mask`` (the vector of learned masking). An expert's projector is ``projector:<name>``.
``adapter:<set>`` is a soft mixture of low-rank experts."""
PRECISIONS = ("float32", "mixed", "bfloat16")
STRATEGIES = ("projector", "shared", "modality", "modality+text")
SCHEDULES = ("cosine", "linear", "constant")

_NICKNAMES = {
    **{f"{role}s": role for role in (PROJECTOR, ENCODER, EMBEDDING, HEAD, ROUTER, EXPERT, GROUP, ADAPTER)},
    "separator": SEPARATORS,
}


def part_role(name: str) -> tuple[str, str]:
    """Splits a part's name into role and owner.

    Args:
        name: ``projectors``, ``projector:sees``, ``group:audio``, ``key:*.q_proj.weight``.

    Returns:
        The role in the singular, and the text after the colon; empty when all parts of the role are meant.
    """
    role, _, which = name.partition(":")
    return _NICKNAMES.get(role, role), which


def _part_name(raw: Any) -> str:
    if not isinstance(raw, str):
        raise FieldError("'{path}' must be the name of a part.", hint=f"Parts are {', '.join(ROLES)}.")
    role, which = part_role(raw)
    if role not in ROLES:
        hint = nearest_name(raw.partition(":")[0], (*ROLES, *_NICKNAMES))
        raise FieldError(f"'{{path}}' is not a known part: '{raw}'.", hint=hint)
    if raw.endswith(":") or (role == "key" and not which):
        raise FieldError(f"'{{path}}' has no name after the colon: '{raw}'.", hint="Write 'projector:<source>'.")
    return raw


PartName: TypeAlias = Annotated[str, BeforeValidator(_part_name)]


def _rates(raw: Any) -> Any:
    """Reads one learning rate, or a mapping of parts to learning rates."""
    table = raw if isinstance(raw, Mapping) else {None: raw}
    if not table:
        raise FieldError("'{path}' is empty.")
    for part, rate in table.items():
        at = () if part is None else (part,)
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise FieldError("'{path}' must be a number, or a mapping of parts to numbers.", at=at)
        if not 0 < rate < 1e3:
            raise FieldError("'{path}' must be more than zero.", at=at)
        if part is not None:
            _check_part_key(part)
    return {part: float(rate) for part, rate in raw.items()} if isinstance(raw, Mapping) else float(raw)


def _check_part_key(part: Any) -> None:
    try:
        _part_name(part)
    except FieldError as error:
        raise FieldError(error.message, at=(part,), hint=error.hint) from None


Rates: TypeAlias = Annotated[Any, PlainValidator(_rates)]


class LoraSpec(Spec):
    """Low-rank factors on the linear layers of a part, which itself stays frozen.

    Attributes:
        rank: Rank of the factors.
        alpha: Numerator of the scale alpha / rank of the product; default: twice the rank.
        dropout: Dropout probability of the factors' input.
        targets: Names of the linear layers (``q_proj``); default: all of the part.
    """

    rank: Annotated[Count, Field(ge=1)] = 16
    alpha: Annotated[Number, Field(gt=0)] | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @property
    def scaled_by(self) -> float:
        """``alpha``, with its default."""
        return float(self.alpha if self.alpha is not None else 2 * self.rank)


class GroupsSpec(Spec):
    """The decoupled groups that a strategy adds to the language model.

    Attributes:
        kind: ``dense`` copies of the projections, or ``low-rank`` factors beside them.
        rank: Rank of the factors; the published donors use 128.
        scale: Factor of the product; the published donors use 2.
        modalities: Modalities that get a group; default: all that the checkpoint accepts.
    """

    kind: Annotated[Literal["dense", "low-rank"], one_of("kind of groups", ("dense", "low-rank"))] = "low-rank"
    rank: Annotated[Count, Field(ge=1)] = 128
    scale: Annotated[Number, Field(gt=0)] = 2.0
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] | None = None


class Stage(Spec):
    """One alignment stage.

    Attributes:
        preset: Name of a preset, whose settings fill in what the stage leaves out; see ``presets.py``.
        train: Parts that are trained.
        strategy: Name for what a donor trains, instead of ``train``: ``projector``, ``shared`` (projectors and the
            language model), ``modality`` (projectors and the modalities' groups), ``modality+text`` (also the text
            group).
        groups: Decoupled groups that the strategy adds.
        lora: Part to its low-rank factors.
        data: Data sets, each a path or a mapping; see ``datasets.py``.
        temperature: Exponent on the data sets' weights is 1 / temperature; 1 leaves them as they are.
        steps: Number of optimizer steps.
        epochs: Passes over the data, instead of steps; one when neither is given.
        lr: Learning rate, or a mapping of parts to learning rates.
        batch_size: Samples of an optimizer step, over all processes.
        batches: ``one_task``: every optimizer step has samples of one task; default: tasks are mixed in a step.
        accumulation: Pieces that a step is cut into; more pieces need less memory and give the same step.
        warmup: Length of the warm-up: below 1 a share of all steps, else a number of steps.
        schedule: How the learning rate falls after the warm-up.
        weight_decay: Weight decay of AdamW, on matrices only.
        clip: Largest norm of the gradients; 0 turns clipping off.
        max_length: Most tokens of a sample.
        precision: ``float32``; ``mixed`` (bfloat16 products, trained parameters in float32); ``bfloat16``. Default:
            ``float32`` for a float32 checkpoint, ``mixed`` for others.
        gradient_checkpointing: Whether to recompute activations instead of storing them.
        group_by_length: Whether a piece gets samples of similar length.
        feature_cache: Whether to run frozen encoders once for each item and store their outputs on disk, beside the
            stages' results.
        packing: Whether the samples of a piece are put into one row, without padding; causal language models only.
        gscm: Masking of the generalist's tokens, in training only.
        router: How the router of a checkpoint with experts is trained.
        tiles: How images are cut in this stage.
        dpo: Direct preference optimisation: the stage learns from pairs of answers which one is preferred.
        seed: Seed of the sample order, the dropout and new parameters.
        save_every: Steps between two checkpoints that an interrupted run is resumed from.
        workers: Processes that prepare samples.
        sharding: ``fsdp`` splits the model over the devices.
        stop_on_divergence: Whether to stop a run whose loss diverges.
    """

    preset: str | None = None
    train: tuple[PartName, ...] = ()
    strategy: Annotated[str, one_of("strategy", STRATEGIES)] | None = None
    groups: GroupsSpec | None = None
    lora: dict[PartName, LoraSpec] = Field(default_factory=dict)
    data: tuple[DatasetSpec, ...] = ()
    temperature: Temperature = 1.0
    steps: Annotated[Count, Field(ge=1)] | None = None
    epochs: Annotated[Number, Field(gt=0)] | None = None
    lr: Rates = 1e-4
    batch_size: Annotated[Count, Field(ge=1)] = 16
    batches: Annotated[Literal["mixed", "one_task"], one_of("kind of batches", ("mixed", "one_task"))] | None = None
    accumulation: Annotated[Count, Field(ge=1)] = 1
    warmup: Annotated[Number, Field(ge=0)] = 0.03
    schedule: Annotated[str, one_of("schedule", SCHEDULES)] = "cosine"
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    clip: Annotated[Number, Field(ge=0)] = 1.0
    max_length: Annotated[Count, Field(ge=8)] = 2048
    precision: Annotated[str, one_of("precision", PRECISIONS)] | None = None
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    feature_cache: bool = False
    packing: bool = False
    gscm: Masking | None = None
    router: RouterTraining | None = None
    tiles: Tiling | None = None
    dpo: Preference | None = None
    seed: Annotated[Count, Field(ge=0, lt=2**32)] = 0
    save_every: Annotated[Count, Field(ge=1)] = 200
    workers: Annotated[Count, Field(ge=0)] = 0
    sharding: Annotated[Literal["none", "fsdp"], one_of("sharding", ("none", "fsdp"))] = "none"
    stop_on_divergence: bool = True

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, raw: Any) -> Any:
        return fill_in(raw)

    @model_validator(mode="after")
    def _check(self) -> Stage:
        if not (self.train or self.strategy or self.lora or self.fits_router):
            raise FieldError("'{path}' trains nothing.", hint="Give 'train', 'lora' or 'strategy'.")
        if self.groups is not None and self.strategy not in {"modality", "modality+text"}:
            hint = "They belong to 'strategy: modality' and 'strategy: modality+text'."
            raise FieldError("'{path}' needs a strategy that adds groups.", at=("groups",), hint=hint)
        if self.steps is not None and self.epochs is not None:
            raise FieldError("'{path}' and 'epochs' cannot both be set.", at=("steps",), hint="Keep one of them.")
        if self.batch_size % self.accumulation:
            raise FieldError(
                f"'{{path}}' cannot cut {self.batch_size} samples into {self.accumulation} equal pieces.",
                at=("accumulation",),
                hint="Choose a divisor of batch_size.",
            )
        check_preference(self)
        return self._check_experts()

    def _check_experts(self) -> Stage:
        if self.gscm is not None and self.packing:
            message = "'{path}' cannot be combined with 'packing': a packed row has no mask to hide tokens with."
            raise FieldError(message, at=("gscm",), hint="Write 'group_by_length: true' instead of 'packing: true'.")
        trained = [(("train", number), name) for number, name in enumerate(self.train)]
        trained += [(("lora", name), name) for name in self.lora]
        for at, name in trained:
            if self.fits_router and part_role(name)[0] == "router":
                hint = "Leave it out, or write 'fit: joint'."
                raise FieldError("'{path}' is the router, which 'router.fit: separate' fits.", at=at, hint=hint)
        return self

    @property
    def fits_router(self) -> bool:
        """Whether the router is fitted separately, before the stage's steps."""
        return self.router is not None and self.router.fit == "separate"


class AlignSpec(Spec):
    """The short fine-tunes after a composition.

    Attributes:
        stages: Number to stage; each stage starts from the result of the previous one.
    """

    stages: dict[Count, Stage] = Field(min_length=1)

    def before(self, number: int) -> int | None:
        """Returns the number of the stage that a stage starts from; None for the first."""
        return max((other for other in self.stages if other < number), default=None)
